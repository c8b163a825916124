"""A world whose services are images: a registry on this machine's loopback, and a separate daemon that builds images and pushes them.

No image can be pulled, so the base image is made from this machine's Node.js.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from azora_ci.clients.docker import build_context, images
from azora_ci.clients.docker.buildkit import BuildKit, ImageBuild
from azora_ci.core import config
from azora_ci.core.errors import BadInputError
from azora_ci.rehearsal import node
from azora_ci.rehearsal.docker import local_images, machine
from azora_ci.rehearsal.docker.machine import MachineAddresses, Note
from azora_ci.rehearsal.world import OLD_DEPLOYMENT, World

IMPORT_SECONDS = 300.0  # for one image


@dataclass
class ImagesWorld(World):
    """A started world with a registry and a daemon that builds."""

    note: Note = field(init=False)
    addresses: MachineAddresses = field(init=False)
    registry_address: str = ""
    made_images: list[str] = field(default_factory=list)

    def start(self) -> None:
        """Start every part. Raises an AzoraError that names the part that did not start."""
        self.note, self.addresses = Note.begin(self.run.folder), MachineAddresses.choose()
        for command in self._network_commands():
            self.processes.run(command, echo=False, timeout=60, next_step="is this a container without the right to make networks?")
        super().start()

    def _network_commands(self) -> Iterator[tuple[str, ...]]:
        """Yield the commands that make what the daemons need of a network."""
        return machine.bridge_commands(self.note, self.addresses)

    @property
    def repository(self) -> str:
        """Return the repository of the services' images."""
        return f"{self.registry_address}/azora"

    def _daemon(self, name: str, argv: tuple[str, ...]) -> int:
        # Outside the run's folder: everything that works below it is ended at once, and dockerd would restart an ended containerd.
        return self._detached(name, list(argv), {"PATH": machine.search_path()}, cwd=Path(self.note.folder))

    def _relay(self, name: str, listen: str, target: str, *prefix: str) -> str:
        """Start a relay and return the address it listens at. ``prefix``: a command that enters the namespace, or nothing."""
        argv = [*prefix, sys.executable, "-m", "azora_ci.rehearsal.docker.relay", listen, target]
        return self._first_line(name, self._detached(name, argv))

    def _start_registry(self) -> None:
        """Start a registry on this machine's loopback, where it needs no certificate."""
        settings = self.run.path("docker/registry.yml")
        settings.write_text(machine.registry_configuration(self.run.folder / "docker" / "registry"), encoding="utf-8")
        pid = self._daemon("registry", (machine.program("docker-registry"), "serve", str(settings)))
        log = self.run.folder / "logs" / "registry.log"
        listens = re.compile(r"listening on (127\.0\.0\.1:[0-9]+)")
        self._until(lambda: listens.search(log.read_text(encoding="utf-8")), "docker-registry", pid)
        self.registry_address = listens.findall(log.read_text(encoding="utf-8"))[0]

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

    def _docker(self) -> images.Docker:
        url = f"unix://{self.note.socket('builder')}"
        return images.Docker(url, credentials=None, log=self.processes.log.write, clock=self.clock)

    def _build_images(self, deploy_config: config.DeployConfig) -> dict[str, str]:
        """Build and push the old version's images; return their digests."""
        docker, digests = self._docker(), {}
        buildkit = BuildKit.find(self.processes, f"unix://{self.note.socket('builder')}")
        commit = self.scratch.git("rev-parse", "HEAD")
        for service in deploy_config.services:
            folder = build_context.context_folder(service.context, self.run.folder / "old-release")
            reference = f"{self.repository}/{service.id}:{self.application.old}"
            labels = images.ImageLabels(service.id, self.application.old, commit, OLD_DEPLOYMENT).labels
            build = ImageBuild(folder, service.dockerfile, reference, labels, target=service.build.target, args=service.build.args)
            buildkit.build(build, echo=False)
            digests[service.id] = docker.push(reference, docker.image_id(reference)).digest
        return digests

    def environment(self, attempt: int) -> dict[str, str]:
        """Return the environment of every step; DOCKER_HOST names the build daemon, which on a real runner is the machine's."""
        return {**super().environment(attempt), "DOCKER_HOST": f"unix://{self.note.socket('builder')}"}
