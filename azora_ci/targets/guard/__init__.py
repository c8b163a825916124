"""The guard, the only writer of a host's routes: server and store, shipped into a container, and the client that asks for changes."""
