"""The streaming backup and its proof: dump, upload, restore and compare in one pass. How a person restores is ``database.restore``."""
