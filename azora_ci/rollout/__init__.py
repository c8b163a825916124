"""How far may we go: the stages, the verdict on probes and traffic, the watching. Moves no traffic itself: a target does."""
