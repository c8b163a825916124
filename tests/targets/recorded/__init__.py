"""What an earlier version installed on a production host, laid out again: see ``README.md``."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

from docker.types import IPAMConfig, IPAMPool

from tests.support.waiting import until

STATES = ("promoted", "at-5-percent", "returned")


class Recorded:
    """A recorded host. ``state`` is one of ``STATES``."""

    def __init__(self, name: str) -> None:
        self.folder = Path(__file__).parent / name
        self.states: dict[str, Any] = json.loads((self.folder / "states.json").read_text())
        self.host: dict[str, Any] = json.loads((self.folder / "containers.json").read_text())
        self.containers: dict[str, Any] = self.host["containers"]

    # --- the volume ----------------------------------------------------------------------------------------------------

    def lines(self, state: str) -> list[bytes]:
        """Return the lines of the journal, with their ends."""
        return (self.folder / "volume/journal.jsonl").read_bytes().splitlines(keepends=True)[: self.states[state]["journal_lines"]]

    def entries(self, state: str) -> list[Any]:
        """Return the entries of the journal."""
        return [json.loads(line) for line in self.lines(state)]

    def events(self, state: str) -> list[Any]:
        """Return what runners noted: what the guard answers to ``GET /journal``."""
        return [entry["event"] for entry in self.entries(state) if entry.get("event") is not None]

    def generation(self, state: str) -> str:
        """Return the generation in force."""
        return str(self.states[state]["status"]["generation"])

    def files(self, generation: str) -> dict[str, str]:
        """Return the files of a generation, name -> text."""
        return {path.name: path.read_text() for path in sorted((self.folder / "volume/generations" / generation).iterdir())}

    def lay(self, folder: Path, state: str) -> None:
        """Make a guard's folder as it was."""
        shutil.copytree(self.folder / "volume", folder, dirs_exist_ok=True)
        (folder / "journal.jsonl").write_bytes(b"".join(self.lines(state)))
        for name, size in self.states[state]["newlines"].items():
            for path in {folder / name, folder / name.replace("spares/0", "spares/1")}:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"\n" * size)
        for name, aim in self.states[state]["links"].items():
            (folder / name).symlink_to(aim)

    # --- the host ------------------------------------------------------------------------------------------------------

    def install(self, client: Any, volume_folder: Path, images: dict[str, str], flags: Path) -> None:
        """Install everything on an empty host, as it was at 5 %. ``images``: name of the recorded image -> the one to take instead."""
        for name, network in self.host["networks"].items():
            pools = [IPAMPool(subnet=pool["Subnet"], gateway=pool["Gateway"]) for pool in network["IPAM"]["Config"]]
            client.networks.create(name, ipam=IPAMConfig(pool_configs=pools), internal=network["Internal"])
        for name in self.host["volumes"]:
            client.volumes.create(name)
        self.lay(volume_folder, "at-5-percent")
        containers = {name: self._create(client, name, images, flags) for name in self.containers}
        containers["azora-guard"].put_archive("/", self._guard_archive())
        for container in containers.values():
            container.start()
        until(lambda: b"listens on" in containers["azora-guard"].logs(), "the guard listens")

    def _create(self, client: Any, name: str, images: dict[str, str], flags: Path) -> Any:
        facts, api = self.containers[name], client.api
        image = images[facts["Image"].partition("@")[0].rpartition("/")[2]]
        binds = [bind.replace("/srv/flags", str(flags)) for bind in facts["HostConfig"]["Binds"]]
        first, *others = facts["Networks"].items()
        container_id = api.create_container(
            image,
            name=name,
            entrypoint=facts["Entrypoint"],
            command=facts["Cmd"],
            environment=facts["Env"],
            labels=facts["Labels"],
            ports=[tuple(port.split("/")) for port in facts["HostConfig"]["PortBindings"]],
            host_config={**facts["HostConfig"], "Binds": binds},
            networking_config=api.create_networking_config({first[0]: api.create_endpoint_config(ipv4_address=first[1])}),
        )["Id"]
        for network, address in others:
            client.networks.get(network).connect(container_id, ipv4_address=address)
        return client.containers.get(container_id)

    def _guard_archive(self) -> bytes:
        buffer, guard = io.BytesIO(), self.folder / "guard"
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for path in guard.rglob("*.txt"):
                tar.add(path, f"azora/{path.relative_to(guard).with_suffix('')}")
        return buffer.getvalue()
