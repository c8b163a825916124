"""What is rehearsed: the sample, or a repository that somebody adopted. Each brings the release that runs and the one to deploy."""
