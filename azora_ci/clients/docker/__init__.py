"""Docker: build contexts, and images as daemon and registries know them. Containers of production hosts are ``targets.docker_hosts``."""
