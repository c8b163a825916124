"""May we go back, and how: the rollback window, the previous version, the instructions for people. Who moves traffic is a target."""
