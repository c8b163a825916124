"""The world of ``scripts/rehearse --docker``: production is a host with sshd and dockerd, and services are containers.

Database, S3, GitHub, Slack, the sample application and the load are the same as in ``world``.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from azora_ci.cli.adopt.plan import CONFIG
from azora_ci.core import config
from azora_ci.core.settings import ProductionHosts
from azora_ci.core.variables import Secret
from azora_ci.rehearsal.docker import local_images, machine
from azora_ci.rehearsal.docker.machine import HOST, MACHINE, PUBLIC, MachineAddresses
from azora_ci.rehearsal.images_world import ImagesWorld
from azora_ci.rehearsal.scenarios import LEASE_SECONDS
from azora_ci.rehearsal.world import OLD_DEPLOYMENT, START_SECONDS
from azora_ci.targets.base import TargetContext
from azora_ci.targets.docker_hosts.doors import socket_of
from azora_ci.targets.docker_hosts.names import Names
from azora_ci.targets.docker_hosts.target import DockerHosts
from azora_ci.targets.release import Release

FAULTS = "/faults"  # in the services' containers


@dataclass(frozen=True)
class DockerPlaces:
    """A production host: addresses, images of edge and guard, the repository of the registry, the file of faults."""

    addresses: MachineAddresses
    edge_image: str
    guard_image: str
    repository: str
    fault_file: Path
    run_folder: Path  # the host's /run
    path: str | None = None

    @property
    def public_url(self) -> str:
        """Return the address of the host's edge. It differs from sshd's address, which is a secret and masked in all output."""
        return f"http://{self.addresses.link_address(PUBLIC)}"

    @property
    def admin_socket(self) -> Path:
        """Return Envoy's admin socket, as this machine sees it."""
        return self.run_folder / socket_of(Names().edge).relative_to("/run")

    def tables(self) -> dict[str, dict[str, object]]:
        """Return the tables of registry and target."""
        addresses = self.addresses
        hosts = {
            "edge_image": self.edge_image,
            "guard_image": self.guard_image,
            "lease_seconds": LEASE_SECONDS,
            "network": addresses.network,
        }
        return {
            "registry": {"repository": self.repository, "insecure": True},
            "target": {"kind": "docker_hosts"},
            "target.docker_hosts": hosts,
        }

    def service(self, folder: str) -> dict[str, object]:
        """Return build context, environment and volume of a service, which has its own Dockerfile."""
        faults = str(self.fault_file.parent)
        run = {"context": f"services/{folder}", "env": {"FAULT_FILE": f"{FAULTS}/{self.fault_file.name}"}}
        return {**run, "volumes": [f"{faults}:{FAULTS}:ro"], "allow_host_paths": [faults]}


@dataclass
class DockerWorld(ImagesWorld):
    """A started world with a production host."""

    database_url: str = ""
    edge_image: str = ""
    guard_image: str = ""
    known_hosts: str = ""
    key: str = ""

    def _network_commands(self) -> Iterator[tuple[str, ...]]:
        yield from machine.host_commands(self.note, self.addresses)
        yield from super()._network_commands()

    def remarks(self) -> tuple[str, ...]:
        """Return a sentence about the host's address and one about the origin of its images."""
        made = ", ".join([*self.made_images, "Envoy's and the guard's image"])
        images = f"{made} are made of this machine's binaries: nothing of them is pulled from elsewhere"
        return f"its host is {self.addresses.link_address(HOST)}, with sshd and dockerd in network namespace {self.note.namespace}", images

    # --- the parts -----------------------------------------------------------------------------------------------------

    def _start_database(self, old: Path) -> None:
        """Start the database, and a relay to it from the host, because the database listens on this machine's loopback only."""
        super()._start_database(old)
        local_address = f"127.0.0.1:{self.database.cluster.port}"
        relay_address = self._relay("relay-database", f"{self.addresses.link_address(MACHINE)}:0", local_address)
        self.database_url = self.database.url.replace(f"@{local_address}/", f"@{relay_address}/")
        self.processes.log.add_secret(self.database_url)

    def _start_servers(self) -> None:
        super()._start_servers()
        self._start_registry()
        with ThreadPoolExecutor(2) as pool:
            starts = [pool.submit(self._start_builder), pool.submit(self._start_host)]
            for start in starts:
                start.result()

    def _start_registry(self) -> None:
        """Start the registry, and a relay to it on the host's loopback, where it needs no certificate, either."""
        super()._start_registry()
        relay_address = self._relay("relay-registry", f"{self.addresses.link_address(MACHINE)}:0", self.registry_address)
        self._relay("relay-registry-host", self.registry_address, relay_address, *self.note.inside)

    def _start_host(self) -> None:
        client = self._start_docker("host", *self.note.on_host)
        self.edge_image = local_images.envoy(client, self.processes)
        self.guard_image = local_images.python(client, self.processes)
        client.close()
        self._start_sshd()

    def _start_sshd(self) -> None:
        folder = self.run.path("sshd/x").parent
        keygen = machine.program("ssh-keygen")
        for name in ("host_key", "user_key"):
            self.processes.run((keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)), echo=False, timeout=60)
        host = self.addresses.link_address(HOST)
        (folder / "sshd_config").write_text(machine.sshd_configuration(folder, host), encoding="utf-8")
        kind, key = (folder / "host_key.pub").read_text(encoding="utf-8").split()[:2]
        self.known_hosts = f"{host} {kind} {key}"
        self.key = (folder / "user_key").read_text(encoding="utf-8")
        pid = self._daemon("sshd", machine.sshd(self.note, folder))
        log = self.run.folder / "logs" / "sshd.log"
        self._until(lambda: "Server listening" in log.read_text(encoding="utf-8"), "sshd", pid)

    def _start_edge(self) -> None:
        """Write the deployment configuration; the first deployment installs the edge."""
        fault_file = self.run.path("faults/fault.json")
        run_folder = Path(self.note.run_folder)
        self.places = DockerPlaces(self.addresses, self.edge_image, self.guard_image, self.repository, fault_file, run_folder)
        self.application.adopt(self.scratch, self.places, self.registry_url)

    def _deploy_old(self) -> None:
        deploy_config = config.load(self.scratch.folder / CONFIG)
        release = Release(OLD_DEPLOYMENT, self.application.old, self._build_images(deploy_config))
        secrets, logs = self._service_secrets(), self.run.path("logs/old")
        target = DockerHosts(TargetContext(deploy_config, self.processes, self.clock, logs, START_SECONDS, secrets, access=self._access()))
        with target.locked(self._owner()):
            target.deploy(release, 100)
            target.set_weight(release, 100)
            target.promote(release)

    # --- for act -------------------------------------------------------------------------------------------------------

    def _access(self) -> ProductionHosts:
        return ProductionHosts(
            prod_host=Secret(self.addresses.link_address(HOST)),
            kubeconfig_data=None,
            prod_jump_host=None,
            prod_user=Secret("root"),
            prod_key=Secret(self.key),
            prod_known_hosts=self.known_hosts,
            prod_accept_new_host_key=False,
            pull_username=None,
            pull_password=None,
            docker_username=None,
            docker_password=None,
        )

    def secrets(self) -> dict[str, str]:
        """Return the repository's secrets; the database's URL is the relay's, which the host can reach."""
        access = {"PROD_HOST": self.addresses.link_address(HOST), "PROD_USER": "root", "PROD_KEY": self.key}
        return {**super().secrets(), **self._handed_over(self.database_url), "PROD_DATABASE_URL": self.database_url, **access}

    def variables(self) -> dict[str, str]:
        """Return the repository's variables: the host's key, and that the relay's address, which is no loopback, has no TLS."""
        return {**super().variables(), "PROD_KNOWN_HOSTS": self.known_hosts, "PROD_DATABASE_PLAIN": "true"}
