"""Services of images started apart: containers without a network, with a door to the copy and a window for our requests.

Beside each service a container of ours, of the same image but with this machine's Python, holds the network namespace: there the relays
run before the service starts.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from azora_ci.clients.docker import engine
from azora_ci.clients.docker.images import Docker
from azora_ci.core.config import Service
from azora_ci.core.errors import UnreachableError
from azora_ci.core.process import is_alive
from azora_ci.core.process.isolation import INIT, Door, Window, openings
from azora_ci.health.probes import unix_dial
from azora_ci.targets.release import Release
from azora_ci.targets.trial.base import Means, Started, facts_of, port_of

LABEL = "world.azora.trial"  # and the id of the process that started the container
API_SECONDS = 60.0  # limit for one answer of the daemon
PROCESSES = 1024  # and threads, at most in a container
INSIDE = Path("/azora-ci")  # where the container of ours has its files


class ImagesApart:
    """See ``base.Apart``."""

    def __init__(self, means: Means) -> None:
        self._means = means

    @contextmanager
    def started(self, service: Service, release: Release, env: Mapping[str, str], door: Door) -> Iterator[Started]:
        """Pull the service's image by its digest and run it during the block."""
        with ExitStack() as stack, self._translated():
            api = engine.open_api(self._means.docker_host, version="auto", timeout=API_SECONDS)
            stack.callback(api.close)
            _remove_left_behind(api)
            image = self._pull(api, service, release, stack)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="azora-ci-", ignore_cleanup_errors=True)))
            window = Window(folder / "sockets" / "window", port_of(service, door))
            holder = self._container(api, stack, image, **_holder(api, door, window))
            api.start(holder)
            container = self._container(
                api,
                stack,
                image,
                command=list(service.command) or None,  # None: the image's own
                entrypoint=list(service.entrypoint) or None,
                environment={**env, **facts_of(service, release, door, "0.0.0.0")},  # noqa: S104 - inside its own namespace
                host_config=_cage(
                    api, network_mode=f"container:{holder}", mem_limit=service.memory, read_only=service.read_only,
                    tmpfs={"/tmp": ""} if service.read_only else None,  # noqa: S108 - inside the container
                ),
            )  # fmt: skip
            api.start(container)
            yield Started(unix_dial(window.socket), lambda: _ended(api, container), lambda: None)

    def _pull(self, api: Any, service: Service, release: Release, stack: ExitStack) -> str:
        """Pull the image, which is removed at the end unless it was there before, and return its name."""
        registry = self._means.config.registry
        assert registry is not None  # noqa: S101 - the configuration's own check
        reference = f"{registry.repository}/{service.id}"
        name = f"{reference}@{release.digests[service.id]}"
        known = {digest for image in api.images() for digest in image.get("RepoDigests") or ()}
        if name not in known:
            stack.callback(_quietly, partial(api.remove_image, name))
        login = self._means.login if registry.holds(reference) else None
        docker = Docker(self._means.docker_host, credentials=login, log=self._means.processes.log.write, clock=self._means.clock)
        docker.pull(f"{reference}:{release.version}", release.digests[service.id])
        return name

    def _container(self, api: Any, stack: ExitStack, image: str, **options: Any) -> str:
        """Create a container that is removed with its volumes at the end of the stack; return its id."""
        name = f"azora-ci-trial-{os.getpid()}-{os.urandom(6).hex()}"
        # Before it is created: a cancellation may come in between.
        stack.callback(_quietly, partial(api.remove_container, name, force=True, v=True))
        return str(api.create_container(image, name=name, labels={LABEL: str(os.getpid())}, **options)["Id"])

    @contextmanager
    def _translated(self) -> Iterator[None]:
        def explained(answer: str, error: Exception) -> UnreachableError:
            return UnreachableError(
                "The version in production cannot be started on this machine",
                what=(answer or str(error))[:500],
                where=self._means.docker_host,
                next_step="read the answer of the Docker daemon, which must run on this machine",
            )

        with engine.translated_errors(explained):
            yield


def _holder(api: Any, door: Door, window: Window) -> dict[str, Any]:
    """Return the options of the container that holds the network namespace, and relays there as the owner of the door's folder."""
    from docker.types import Mount

    owner = door.socket.parent.stat()
    window.socket.parent.mkdir()
    window.socket.parent.chmod(0o777)  # that user makes the socket there; nobody else gets into the folder above
    shown = [path for path in ("/usr", "/lib", "/lib64", sys.base_prefix) if Path(path).is_dir()]
    mounts = [Mount(path, os.path.realpath(path), type="bind", read_only=True) for path in dict.fromkeys(shown)]
    mounts += [Mount(str(INSIDE / "init.py"), str(INIT), type="bind", read_only=True)]
    mounts += [Mount(str(INSIDE / "door"), str(door.socket.parent), type="bind", read_only=True)]
    mounts += [Mount(str(INSIDE / "window"), str(window.socket.parent), type="bind")]
    inside = openings(
        replace(door, socket=INSIDE / "door" / door.socket.name), replace(window, socket=INSIDE / "window" / window.socket.name)
    )
    return {
        "entrypoint": [os.path.realpath(sys.executable), "-I", "-S", "-B", str(INSIDE / "init.py")],
        "command": [json.dumps(inside)],
        "user": f"{owner.st_uid}:{owner.st_gid}",
        "host_config": _cage(api, network_mode="none", mounts=mounts, read_only=True),
    }


def _cage(api: Any, **options: Any) -> Any:
    """Return what a container may: nothing that it can do without, and no log of what it prints."""
    return api.create_host_config(
        cap_drop=["ALL"], security_opt=["no-new-privileges"], pids_limit=PROCESSES, log_config={"Type": "none"}, **options
    )


def _ended(api: Any, container: str) -> str | None:
    state = api.inspect_container(container)["State"]
    if state["Running"]:
        return None
    return f"its container ended, exit code {state['ExitCode']}{', it had too little memory' if state.get('OOMKilled') else ''}"


def _remove_left_behind(api: Any) -> None:
    """Remove the containers of processes that were killed."""
    for container in api.containers(all=True, filters={"label": LABEL}):
        if not is_alive(int(container["Labels"][LABEL])):
            _quietly(partial(api.remove_container, container["Id"], force=True, v=True))


def _quietly(remove: Callable[[], object]) -> None:
    from docker.errors import DockerException
    from requests import RequestException

    with suppress(DockerException, RequestException):
        remove()
