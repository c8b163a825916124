"""The edge of an earlier version, from the files that it left on a host: the same, but for addresses and folder."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from azora_ci.core.clock import Clock
from azora_ci.targets.envoy.edge import ADMIN_SOCKET, Edge
from azora_ci.targets.envoy.state import command
from tests.support.edge_world import ENVOY, free_ports
from tests.support.waiting import until
from tests.targets.recorded import Recorded

STATE = "at-5-percent"


@dataclass(frozen=True)
class Earlier:
    """A running edge of an earlier version: the port that users connect to, and the edge as the present version sees it."""

    port: int
    edge: Edge

    def upgrade(self) -> None:
        """Have the present version's files in force, with the same state."""
        self.edge.apply(self.edge.state())


@contextlib.asynccontextmanager
async def earlier_edge(folder: Path, address: str) -> AsyncIterator[Earlier]:
    """Start Envoy with the recorded bootstrap and generation; every instance is the one at ``address``."""
    recorded, (port,) = Recorded("febae5f"), free_ports(1)
    recorded.lay(folder, STATE)
    for path in (folder / "bootstrap.json", *(folder / "generations").rglob("*.json")):
        path.write_text(_moved(path.read_text(), folder, port, address))
    bootstrap = json.loads((folder / "bootstrap.json").read_text())
    bootstrap["admin"] = {"address": {"pipe": {"path": str(folder / ADMIN_SOCKET)}}}
    (folder / "bootstrap.json").write_text(json.dumps(bootstrap))
    with (folder / "envoy.log").open("ab") as log:
        envoy = subprocess.Popen(command(folder / "bootstrap.json", binary=ENVOY), stdout=log, stderr=log)
    try:
        edge = Edge(folder, Clock())
        await asyncio.to_thread(until, lambda: _weighs(edge), "the earlier edge routes")
        yield Earlier(port, edge)
    finally:
        envoy.kill()
        envoy.wait()


def _moved(text: str, folder: Path, port: int, address: str) -> str:
    """Return a file of the recorded edge for this machine."""
    host, _, own = address.rpartition(":")
    text = text.replace('"/edge', f'"{folder}').replace("0.0.0.0:8080", f"127.0.0.1:{port}").replace('"/api"', '"/"')
    text = text.replace('"path_separated_prefix": "/"', '"prefix": "/"')
    text = text.replace('"address": "0.0.0.0", "port_value": 8080', f'"address": "127.0.0.1", "port_value": {port}')
    text = re.sub(r'"address": "10\.[\d.]+", "port_value": 8080', f'"address": "{host}", "port_value": {own}', text)
    return re.sub(r'"10\.[\d.]+:8080"', f'"{address}"', text)


def _weighs(edge: Edge) -> bool:
    with contextlib.suppress(Exception):  # no socket yet, or no routes
        return bool(edge.weights())
    return False
