"""The parts of ``--docker``: the host's network, daemons, images and relay, and their end; ``docker_world`` puts them together."""
