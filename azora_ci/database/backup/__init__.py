"""The streaming backup and its proof: dump, compress, hash, upload, restore and compare in one pass."""
