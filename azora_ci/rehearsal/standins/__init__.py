"""Services that stand in for real ones and speak their protocols over real sockets; none knows of runs, scenarios or demands."""
