"""The names of everything that an application has on its hosts. Two applications on one host have different prefixes, and share nothing."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_PREFIX = "azora"


@dataclass(frozen=True)
class Names:
    """Names that begin with ``target.docker_hosts.name``: of containers, networks, and the volume with the edge's files."""

    prefix: str = DEFAULT_PREFIX

    @property
    def edge(self) -> str:
        """Return the name of the edge's container, and of the volume with its files."""
        return f"{self.prefix}-edge"

    @property
    def guard(self) -> str:
        """Return the name of the guard's container."""
        return f"{self.prefix}-guard"

    @property
    def next_edge(self) -> str:
        """Return the name of the container that replaces the edge, until it has its name."""
        return f"{self.prefix}-edge-next"

    @property
    def trial(self) -> str:
        """Return the name of the container that tries a new edge's files."""
        return f"{self.prefix}-edge-trial"

    @property
    def asked(self) -> str:
        """Return the name of the container that looks at the host's Docker socket."""
        return f"{self.prefix}-asked"

    @property
    def wall(self) -> str:
        """Return the name of the container that keeps instances from the machine's metadata service."""
        return f"{self.prefix}-wall"

    @property
    def pattern(self) -> str:
        """Return the filter of Docker's lists that names containers of this application alone."""
        return f"^/{self.prefix}-"

    @property
    def front(self) -> str:
        """Return the name of the network of the edge's own ports.

        Docker publishes ports, and leads the way out, by the network whose name is first in the alphabet: before those of services.
        """
        return "az-edge" if self.prefix == DEFAULT_PREFIX else f"0-{self.prefix}-edge"

    def network(self, service_id: str) -> str:
        """Return the name of a service's network."""
        return f"{self.prefix}-to-{service_id}"

    def is_network(self, name: str) -> bool:
        """Say whether a network is one of this application's services. An earlier version had one for all of them."""
        return name.startswith(self.network("")) or (self.prefix == DEFAULT_PREFIX and name == DEFAULT_PREFIX)

    def instance(self, service_id: str, release_id: str, number: int) -> str:
        """Return the name of an instance's container."""
        return f"{self.prefix}-{service_id}-{release_id}-{number}"

    def job(self, service_id: str, release_id: str) -> str:
        """Return the name of a job's container."""
        return f"{self.prefix}-job-{service_id}-{release_id}"
