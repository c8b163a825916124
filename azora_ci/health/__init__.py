"""What services answer: endpoints, probes and their results, counted traffic. What follows from it is decided in ``rollout``."""
