"""The guard, the only writer of a host's routes: what runs in a container, and its client. Decides no rollout."""
