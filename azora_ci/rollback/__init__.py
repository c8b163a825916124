"""May we go back, and how: the rollback window, the previous version and its instances, the instructions for people."""
