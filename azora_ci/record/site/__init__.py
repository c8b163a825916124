"""The static history: a list of all deployments with DORA's measures, and a page for each record."""
