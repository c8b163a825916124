"""The networks of a host: one for each service, with the edge and the service's instances in it, and one for the edge's own ports.

Docker's firewall lets nothing through from one network to another, so that an instance reaches the edge, and no other service. An earlier
version had one network for all services. The edge is in that one as well until no instance is.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any

from azora_ci.core.config import DockerHostsSettings as HostSettings
from azora_ci.core.errors import NotTrueError
from azora_ci.targets.docker_hosts.host import LABEL, DockerHost

SERVICE = f"{LABEL}service"  # label of a service's network
EDGE_NUMBER, FIRST_INSTANCE = 2, 3  # index of an address in a network
LARGEST_SUBNET, SUBNETS = 24, 4  # length of the prefix of a service's network, and by how much it is longer than that of them all


class Networks:
    """Makes, joins and removes the networks of a host."""

    def __init__(self, host: DockerHost, settings: HostSettings) -> None:
        self._host = host
        self._range = ipaddress.IPv4Network(settings.network)

    def ensure(self, client: Any, service_ids: set[str]) -> None:
        """Create the networks that are missing: the edge's own, and one for each service."""
        names = self._host.names
        present = {network.name for network in client.networks.list()}
        for name, labels in [(names.front, {}), *((names.network(service), {SERVICE: service}) for service in sorted(service_ids))]:
            if name not in present:
                self._create(client, name, labels)

    def _create(self, client: Any, name: str, labels: Mapping[str, str]) -> None:
        from docker.types import IPAMConfig, IPAMPool

        subnet = self._free_subnet(client)
        pool = IPAMConfig(pool_configs=[IPAMPool(subnet=str(subnet), gateway=str(subnet[1]))])
        client.networks.create(name, driver="bridge", ipam=pool, labels=dict(labels), check_duplicate=True)

    def _free_subnet(self, client: Any) -> ipaddress.IPv4Network:
        taken = [(network.name, subnet) for network in client.networks.list() for subnet in subnets_of(network)]
        prefix = max(LARGEST_SUBNET, self._range.prefixlen + SUBNETS)
        for subnet in self._range.subnets(new_prefix=prefix):
            if not any(subnet.overlaps(other) for _, other in taken):
                return subnet
        names = ", ".join(f"{name} ({subnet})" for name, subnet in taken if subnet.overlaps(self._range))
        raise NotTrueError(
            "No addresses are free for a network",
            what=f"in {self._range}: {names} have them all",
            where=f"{self._host.name}, target.docker_hosts.network",
            next_step="configure another, or a larger, subnet; networks that are there keep their addresses",
        )

    def join(self, client: Any, container: Any) -> None:
        """Have an edge, running or not, in the networks of all services, and in an earlier version's network while that is there."""
        container.reload()
        joined = container.attrs["NetworkSettings"]["Networks"]
        for network in self._of_services(client):
            if network.name not in joined:
                network.connect(container, ipv4_address=edge_address(network))

    def drop_unused(self, client: Any, service_ids: set[str]) -> None:
        """Remove the networks of services that are not configured any more once no container but the edge is in them."""
        kept = {self._host.names.network(service) for service in service_ids}
        for network in self._of_services(client):
            members = {name.lstrip("/") for container in _members(client, network.name) for name in container["Names"]}
            if network.name not in kept and not members - {self._host.names.edge}:
                if members:
                    network.disconnect(self._host.names.edge, force=True)
                network.remove()

    def _of_services(self, client: Any) -> Iterator[Any]:
        for network in client.networks.list():
            if self._host.names.is_network(network.name):
                yield network

    def free_address(self, client: Any, service_id: str) -> tuple[str, str, str]:
        """Return (network, address for a new instance of a service, address of the edge). Raises NotTrueError when all are taken."""
        (network,) = client.networks.list(names=[f"^{self._host.names.network(service_id)}$"])
        (subnet,), taken = subnets_of(network), _taken_addresses(client, network.name)
        numbers = range(FIRST_INSTANCE, subnet.num_addresses - 1)
        address = next((candidate for number in numbers if (candidate := str(subnet[number])) not in taken), None)
        if address is None:
            raise NotTrueError(
                "No address is free for an instance",
                what=f"all of {subnet} are taken",
                where=f"{self._host.name}, network {network.name}",
                next_step="remove containers of old releases from the host, or remove that network and configure a larger one",
            )
        return network.name, address, edge_address(network)


def subnets_of(network: Any) -> list[ipaddress.IPv4Network]:
    """Return the IPv4 subnets of a network."""
    texts = [config.get("Subnet", "") for config in network.attrs["IPAM"].get("Config") or []]
    return [ipaddress.IPv4Network(text) for text in texts if text and ":" not in text]


def edge_address(network: Any) -> str:
    """Return the edge's address in a network."""
    return str(subnets_of(network)[0][EDGE_NUMBER])


def _members(client: Any, network: str) -> list[Any]:
    """Return the containers of a network, also stopped ones, which get their addresses again at their next start."""
    containers: list[Any] = client.api.containers(all=True, filters={"network": network})
    return containers


def _taken_addresses(client: Any, network: str) -> set[str]:
    addresses = set()
    for container in _members(client, network):
        endpoint = container["NetworkSettings"]["Networks"][network]
        configured = endpoint.get("IPAMConfig") or {}
        addresses |= {endpoint.get("IPAddress"), configured.get("IPv4Address")}
    return addresses - {None, ""}
