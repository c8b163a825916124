"""What a person types about the edge: ``edge status``, ``edge log``, ``edge install``."""
