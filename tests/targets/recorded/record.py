"""Record what the present version installs on a production host: ``python -m tests.targets.recorded.record <name>``.

Two releases are promoted by the real step on a real Docker host, and a third one stands at 5 % when its runner is killed. What is
recorded goes to ``tests/targets/recorded/<name>/``, where ``README.md`` says what is in the files. Folders of the machine become neutral
ones, secrets are masked; the registry's address stays, since the edge's label is made of it. Needs root and about two minutes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from azora_ci.core import config
from azora_ci.record import fragments
from tests.support import ROOT
from tests.support.docker_world import NEW, OLD, SHA, Load, World, lan
from tests.support.waiting import until

SECOND = "1764000050-cccccc"
VERSIONS = {OLD: "1.2.2", SECOND: "1.2.3", NEW: "1.2.4"}
LEASE = 45.0  # seconds: the default
FLAGS, SECRET = "/srv/flags", "(masked)"
LIST_SOURCES = "from pathlib import Path; print(*sorted(Path('/azora').rglob('*.py')))"
VOLATILE = ("lock_seconds", "lease_seconds", "disk_free_bytes", "disk_total_bytes", "now")
FEW_LOOKS = {"HEALTH_CHECK_INTERVAL": "0.5"}  # seconds: each look is in the journal
ENDLESS = {"CANARY_MINUTES": "10", "PROGRESSIVE_MINUTES": "10", "FULL_MINUTES": "10"}


class Recorder:
    """One host, and the folder in which it is recorded."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.folder, self.machine = world, folder, world.machines[0]
        self.volume = self.machine.folder / "d/volumes/azora-edge/_data"
        self.states: dict[str, Any] = {}
        self.neutral = {str(world.flags): FLAGS, "not-to-be-seen": SECRET}

    # --- deployments ---------------------------------------------------------------------------------------------------

    def step(self, deployment_id: str, attempt: int, **more: str) -> Any:
        """Start the real rollout of a release."""
        version, world = VERSIONS[deployment_id], self.world
        services = {
            name: {
                "digest": digest,
                "reference": f"{world.lan.registry}/{name}:v{version}",
                "size_bytes": 1,
                "seconds": 0.1,
                "reused": False,
            }
            for name, digest in world.digests(version).items()
        }
        moment, images = "2026-11-24T11:00:00.000Z", {"kind": "images", "services": services, "commands": [], "seconds": 0.2}
        built = fragments.Fragment("build-and-push", deployment_id, f"v{version}", SHA, str(100 + attempt), 1, "ok", moment, moment, images)
        path = world.folder / "received" / f"build-logs-{deployment_id}" / "record" / "build-and-push.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(built.document()))
        run = {"GITHUB_ACTOR": "alice", "GITHUB_REPOSITORY": "azora/shop", "GITHUB_RUN_ID": str(100 + attempt)}
        return world.start(attempt=attempt, DEPLOYMENT_ID=deployment_id, VERSION=f"v{version}", **FEW_LOOKS, **run, **more)

    def promote(self, deployment_id: str, attempt: int) -> None:
        """Deploy a release to the end."""
        code, output = self.world.finish(self.step(deployment_id, attempt))
        assert code == 0, output

    def run(self) -> None:
        """Deploy three releases and record the host in between."""
        self.promote(OLD, 1)
        with Load(self.world):
            self.promote(SECOND, 2)
            self.record("promoted")
            runner = self.step(NEW, 3, **ENDLESS)
            self.world.wait_for_weight(5, runner)
            time.sleep(1)  # Envoy takes it
            os.killpg(runner.pid, signal.SIGKILL)
            runner.wait()
            self.record("at-5-percent")
        containers = self.containers()
        until(lambda: not self.ask("/status")["held"], "the guard has gone back", LEASE + 10)
        self.record("returned")
        self.keep(containers)

    # --- what is recorded ----------------------------------------------------------------------------------------------

    def ask(self, path: str) -> Any:
        """Return what the guard answers."""
        script = f"import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9902{path}').read().decode())"
        return json.loads(run_in(self.machine.client.containers.get("azora-guard"), script))

    def record(self, name: str) -> None:
        """Record the volume and what the guard answers."""
        entries = [json.loads(line) for line in (self.volume / "journal.jsonl").read_text().splitlines()]
        status, files = self.ask("/status"), self.ask("/files")
        assert status.pop("journal") == entries[-20:]
        assert self.ask("/journal") == [entry["event"] for entry in entries if entry.get("event") is not None]
        assert files == {path.name: path.read_text() for path in (self.volume / "current").iterdir()}
        target = self.world.target()
        with target.connected():
            weights = target.observe().weights
        self.states[name] = {
            "journal_lines": len(entries),
            "links": {path.name: str(path.readlink()) for path in sorted(self.volume.iterdir()) if path.is_symlink()},
            "newlines": dict(sorted(self.spares().items())),
            "status": {key: "(changes)" if key in VOLATILE else value for key, value in status.items()},
            "weights": weights,
        }
        for generation in {status["generation"], status["safe_generation"]} - {None}:
            shutil.copytree(self.volume / "generations" / generation, self.folder / "volume/generations" / generation, dirs_exist_ok=True)
        for file in ("journal.jsonl", "bootstrap.json"):
            before = self.folder / "volume" / file
            assert not before.exists() or (self.volume / file).read_bytes().startswith(before.read_bytes())
            shutil.copyfile(self.volume / file, before)

    def spares(self) -> dict[str, int]:
        """Return the bytes of the files that only occupy room: of the journal, and of the first of the spare generations."""
        spares = [self.volume / "journal.spare", *(path for path in (self.volume / "spares").rglob("*") if path.is_file())]
        assert not [path for path in spares if path.read_bytes().strip(b"\n")]
        return {str(path.relative_to(self.volume)): path.stat().st_size for path in spares if path.parent.name != "1"}

    def containers(self) -> dict[str, Any]:
        """Return what ``docker inspect`` says of containers and networks, as far as a container can be made of it again."""
        client = self.machine.client
        networks = {name: client.networks.get(name).attrs for name in ("azora", "azora-admin")}
        return {
            "networks": {
                name: {"IPAM": {"Config": attrs["IPAM"]["Config"]}, "Internal": attrs["Internal"]} for name, attrs in networks.items()
            },
            "volumes": [volume.name for volume in client.volumes.list()],
            "containers": {container.name: facts(container.attrs) for container in client.containers.list(all=True)},
        }

    def keep(self, containers: dict[str, Any]) -> None:
        """Write everything, without the names of this machine."""
        for name, document in (("states", self.states), ("containers", containers)):
            (self.folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
        guard = self.machine.client.containers.get("azora-guard")
        for source in run_in(guard, LIST_SOURCES).decode().split():
            path = self.folder / "guard" / f"{Path(source).relative_to('/azora')}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(run_in(guard, f"print(open('{source}').read(), end='')"))
        for path in self.folder.rglob("*.json*"):
            text = path.read_text()
            for word, neutral in self.neutral.items():
                text = text.replace(word, neutral)
            left = re.findall(rf"/tmp/\S*|{re.escape(str(ROOT))}\S*|{re.escape(self.machine.address)}", text)
            assert not left, (path, left)
            path.write_text(text)


def run_in(container: Any, script: str) -> bytes:
    """Return what a Python script prints in a container."""
    code, output = container.exec_run(["python3", "-c", script])
    assert code == 0, output
    data: bytes = output
    return data


def facts(attrs: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a container's ``inspect`` from which ``create`` makes the same one."""
    settings, host = attrs["Config"], attrs["HostConfig"]
    networks = {name: (endpoint["IPAMConfig"] or {}).get("IPv4Address") for name, endpoint in attrs["NetworkSettings"]["Networks"].items()}
    inherited = ("PATH=", "PYTHON", "GPG_KEY=", "LANG=")
    return {
        "Image": settings["Image"],
        "Entrypoint": settings["Entrypoint"],
        "Cmd": settings["Cmd"],
        "Env": [line for line in settings["Env"] or [] if not line.startswith(inherited)],
        "Labels": settings["Labels"],
        "HostConfig": {key: host[key] for key in ("Binds", "PortBindings", "RestartPolicy", "Memory")},
        "Networks": networks,
    }


def main() -> None:
    """Record into the folder of the name that was asked for."""
    folder = ROOT / "tests/targets/recorded" / sys.argv[1]
    folder.joinpath("volume").mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary, lan(Path(temporary)) as network:
        network.digests |= {version: network._service_image(version) for version in VERSIONS.values()}
        Path(temporary, "world").mkdir()
        world = World(network, Path(temporary, "world"), lease=LEASE, services=("api_gateway",))
        try:
            world.edge_settings = {"sticky_cookie": "azora-release", "trusted_proxies": 1}
            world.config = config.load(world.configure())
            Recorder(world, folder).run()
        finally:
            world.close()


if __name__ == "__main__":
    main()
