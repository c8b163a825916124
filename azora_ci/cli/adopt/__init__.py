"""``adopt``: find what an application is made of, plan the files for its repository, say what is left to fill in. Deploys nothing."""
