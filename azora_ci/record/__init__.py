"""Evidence: fragments of jobs, the records made of them, their chain and archive, and what they say about a failure. Observes nothing."""
