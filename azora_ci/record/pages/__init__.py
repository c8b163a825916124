"""Records and reports as pages that people read."""
