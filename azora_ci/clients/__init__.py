"""One outside system each: GitHub, git, Slack, Docker, S3, SSH. How to talk to it, and nothing about deployments."""
