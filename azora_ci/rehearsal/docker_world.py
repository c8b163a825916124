"""The world of ``scripts/rehearse --docker``: production is a host with sshd and dockerd, and services are containers.

Database, S3, GitHub, Slack, the sample application and the load are the same as in ``world``. A separate daemon builds the images and
pushes them to a registry. No image can be pulled, so the base image is made from this machine's Node.js.
"""

from __future__ import annotations

import contextlib
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from azora_ci.cli.adopt.plan import CONFIG
from azora_ci.clients.docker import build_context, images
from azora_ci.clients.docker.buildkit import BuildKit, ImageBuild
from azora_ci.core import config
from azora_ci.core.errors import BadInputError
from azora_ci.core.settings import ProductionHosts
from azora_ci.core.variables import Secret
from azora_ci.rehearsal import node
from azora_ci.rehearsal.docker import local_images, machine
from azora_ci.rehearsal.docker.machine import HOST, MACHINE, PUBLIC, MachineAddresses, Note
from azora_ci.rehearsal.scenarios import LEASE_SECONDS
from azora_ci.rehearsal.world import OLD_DEPLOYMENT, START_SECONDS, World
from azora_ci.targets.base import TargetContext
from azora_ci.targets.docker_hosts.doors import socket_of
from azora_ci.targets.docker_hosts.names import Names
from azora_ci.targets.docker_hosts.target import DockerHosts
from azora_ci.targets.release import Release

IMPORT_SECONDS = 300.0  # for one image
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
class DockerWorld(World):
    """A started world with a production host."""

    note: Note = field(init=False)
    addresses: MachineAddresses = field(init=False)
    registry_address: str = ""
    database_url: str = ""
    edge_image: str = ""
    guard_image: str = ""
    known_hosts: str = ""
    made_images: list[str] = field(default_factory=list)
    key: str = ""

    def start(self) -> None:
        """Start every part. Raises an AzoraError that names the part that did not start."""
        self.note, self.addresses = Note.begin(self.run.folder), MachineAddresses.choose()
        for command in machine.network_commands(self.note, self.addresses):
            self.processes.run(command, echo=False, timeout=60, next_step="is this a container without the right to make networks?")
        super().start()

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

    def _relay(self, name: str, listen: str, target: str, *prefix: str) -> str:
        """Start a relay and return the address it listens at. ``prefix``: a command that enters the namespace, or nothing."""
        argv = [*prefix, sys.executable, "-m", "azora_ci.rehearsal.docker.relay", listen, target]
        return self._first_line(name, self._detached(name, argv))

    def _daemon(self, name: str, argv: tuple[str, ...]) -> int:
        # Outside the run's folder: everything that works below it is ended at once, and dockerd would restart an ended containerd.
        return self._detached(name, list(argv), {"PATH": machine.search_path()}, cwd=Path(self.note.folder))

    def _start_registry(self) -> None:
        """Start a registry on this machine's loopback, where it needs no certificate, and a relay to it on the host's loopback."""
        settings = self.run.path("docker/registry.yml")
        settings.write_text(machine.registry_configuration(self.run.folder / "docker" / "registry"), encoding="utf-8")
        pid = self._daemon("registry", (machine.program("docker-registry"), "serve", str(settings)))
        log = self.run.folder / "logs" / "registry.log"
        listens = re.compile(r"listening on (127\.0\.0\.1:[0-9]+)")
        self._until(lambda: listens.search(log.read_text(encoding="utf-8")), "docker-registry", pid)
        self.registry_address = listens.findall(log.read_text(encoding="utf-8"))[0]
        relay_address = self._relay("relay-registry", f"{self.addresses.link_address(MACHINE)}:0", self.registry_address)
        self._relay("relay-registry-host", self.registry_address, relay_address, *self.note.inside)

    def _start_docker(self, name: str, *prefix: str) -> Any:
        """Start a daemon and return a client of it."""
        import docker
        from docker.errors import DockerException

        data = self.run.path(f"docker/{name}/x").parent
        pid = self._daemon(f"dockerd-{name}", (*prefix, *machine.dockerd(self.note, name, data, forwards=bool(prefix))))
        url = f"unix://{self.note.socket(name)}"

        def answers() -> bool:
            with contextlib.suppress(DockerException):
                docker.DockerClient(base_url=url, timeout=10).close()
                return True
            return False

        self._until(answers, f"dockerd ({name})", pid)
        return docker.DockerClient(base_url=url, timeout=IMPORT_SECONDS)

    def _start_builder(self) -> None:
        """Start the build daemon with the base images of the services, and push them once, so that later pushes are quick."""
        client = self._start_docker("builder")
        bases = self.application.base_images(self.run.folder / "old-release")
        for number, (name, wanted) in enumerate(bases.items()):
            tag = f"{self.registry_address}/base:{number}"
            fetched = wanted is not None and self._fetched(client, wanted)
            if not fetched:
                self._make_node(client, name, wanted)
            for alias in (name, tag):
                client.images.get(wanted if fetched else name).tag(alias)
            docker = self._docker()
            docker.push(tag, docker.image_id(tag))
        client.close()

    def _fetched(self, client: Any, image: str) -> bool:
        """Load an image from this machine's own daemon, else pull it; say whether that was possible."""
        import docker
        from docker.errors import DockerException

        with contextlib.suppress(DockerException):
            own = docker.from_env(timeout=int(IMPORT_SECONDS))
            with contextlib.closing(own):
                client.images.load(b"".join(own.images.get(image).save(named=True)))
            return True
        with contextlib.suppress(DockerException):
            client.images.pull(image, **({} if ":" in image.rpartition("/")[2] or "@" in image else {"tag": "latest"}))
            return True
        return False

    def _make_node(self, client: Any, name: str, wanted: str | None) -> None:
        """Make an image from this machine's Node.js, which has no shell and no npm. Raises BadInputError for another program's image."""
        if wanted is not None and not re.match(r"(?:docker\.io/)?(?:library/)?node:", name):
            raise BadInputError(
                "A base image is not here",
                what=f"{wanted}, which a Dockerfile begins with, is not in this machine's Docker and cannot be pulled",
                where=name,
                next_step=f"docker pull {wanted}; or build on another one: --base-image {name}=IMAGE",
            )
        accounts = self.run.path("docker/accounts/x").parent
        local_images.node(client, self.processes, node.binary(self.processes), accounts, name)
        self.made_images.append(name)

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
        repository = f"{self.registry_address}/azora"
        run_folder = Path(self.note.run_folder)
        self.places = DockerPlaces(self.addresses, self.edge_image, self.guard_image, repository, fault_file, run_folder)
        self.application.adopt(self.scratch, self.places, self.registry_url)

    def _docker(self) -> images.Docker:
        url = f"unix://{self.note.socket('builder')}"
        return images.Docker(url, credentials=None, log=self.processes.log.write, clock=self.clock)

    def _deploy_old(self) -> None:
        deploy_config = config.load(self.scratch.folder / CONFIG)
        release = Release(OLD_DEPLOYMENT, self.application.old, self._build_images(deploy_config))
        secrets, logs = self._service_secrets(), self.run.path("logs/old")
        target = DockerHosts(TargetContext(deploy_config, self.processes, self.clock, logs, START_SECONDS, secrets, access=self._access()))
        with target.locked(self._owner()):
            target.deploy(release, 100)
            target.set_weight(release, 100)
            target.promote(release)

    def _build_images(self, deploy_config: config.DeployConfig) -> dict[str, str]:
        """Build and push the old version's images; return their digests."""
        docker, digests = self._docker(), {}
        buildkit = BuildKit.find(self.processes, f"unix://{self.note.socket('builder')}")
        commit = self.scratch.git("rev-parse", "HEAD")
        for service in deploy_config.services:
            folder = build_context.context_folder(service.context, self.run.folder / "old-release")
            reference = f"{self.registry_address}/azora/{service.id}:{self.application.old}"
            labels = images.ImageLabels(service.id, self.application.old, commit, OLD_DEPLOYMENT).labels
            build = ImageBuild(folder, service.dockerfile, reference, labels, target=service.build.target, args=service.build.args)
            buildkit.build(build, echo=False)
            digests[service.id] = docker.push(reference, docker.image_id(reference)).digest
        return digests

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

    def environment(self, attempt: int) -> dict[str, str]:
        """Return the environment of every step; DOCKER_HOST names the build daemon, which on a real runner is the machine's."""
        return {**super().environment(attempt), "DOCKER_HOST": f"unix://{self.note.socket('builder')}"}
