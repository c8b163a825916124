"""Services that stand in for real ones: they speak the real protocol over real sockets."""
