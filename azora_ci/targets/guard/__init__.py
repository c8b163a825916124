"""The guard, the only writer of a host's routes: server and store, which run in a container, and their client. Decides no rollout."""
