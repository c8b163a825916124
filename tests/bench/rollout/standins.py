"""Many production hosts in one process: what ``docker_hosts`` needs of each, on real sockets, every answer late by a fixed time.

A host has a Unix socket that speaks the Docker Engine API as far as the target asks (containers, networks, volumes, images), and a
port on loopback behind which are the real guard (``azora_ci.targets.guard`` on a folder of its own), the admin socket of an
Envoy that has taken what the guard's files say, and the health of its instances. Each switch of routes is noted in ``switches.jsonl``.

``python -m tests.bench.rollout.standins FOLDER NUMBER LATENCY LEASE`` prints the ports as JSON and serves until ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from azora_ci.core.clock import Clock
from azora_ci.targets.docker_hosts.doors import socket_of
from azora_ci.targets.docker_hosts.names import Names
from azora_ci.targets.envoy import admin
from azora_ci.targets.envoy.state import EdgeState
from azora_ci.targets.guard.lease import Guard, RefusedError

Answer = tuple[int, bytes]
Respond = Callable[[str, str, bytes], Awaitable[Answer]]


class NotingGuard(Guard):
    """The guard; notes when it switched to which share of the canary."""

    def __init__(self, folder: Path, switches: Path, number: int, lease: float) -> None:
        self._clock, self._switches, self._number_of_host = Clock(), switches, number
        super().__init__(folder, lease_seconds=lease)

    def _switch(self, generation: str) -> None:
        super()._switch(generation)
        state = json.loads(self.files()["edge.json"])
        line = {"at": self._clock.now().timestamp(), "host": self._number_of_host, "canary": state["canary"], "percent": state["percent"]}
        with self._switches.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _json(document: Any, status: int = 200) -> Answer:
    return status, json.dumps(document).encode()


class Host:
    """One host. ``latency``: seconds before every answer."""

    def __init__(self, folder: Path, number: int, latency: float, lease: float) -> None:
        self.folder, self.latency = folder / str(number), latency
        self.folder.mkdir(parents=True)
        self.guard = NotingGuard(self.folder / "edge", folder / "switches.jsonl", number, lease)
        self.networks: dict[str, dict[str, Any]] = {}
        self.containers: dict[str, dict[str, Any]] = {}

    async def start(self) -> int:
        """Listen on ``docker.sock`` in the host's folder and on a port, which is returned."""
        await asyncio.start_unix_server(lambda reader, writer: self._serve(reader, writer, self.docker), str(self.folder / "docker.sock"))
        listener = await asyncio.start_server(self._dialled, "127.0.0.1", 0)
        return int(listener.sockets[0].getsockname()[1])

    # --- sockets -------------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, respond: Respond) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                method, path, _ = head.split(" ", 2)
                body = await self._body(reader, head.lower())
                await asyncio.sleep(self.latency)
                status, data = await respond(method, path, body)
                length = "" if status == 204 else f"Content-Length: {len(data)}\r\nContent-Type: application/json\r\n"
                close = "connection: close" in head.lower()
                ending = "Connection: close\r\n" if close else ""
                writer.write(f"HTTP/1.1 {status} Answer\r\n{length}{ending}\r\n".encode() + data)
                await writer.drain()
                if close:
                    return

    async def _body(self, reader: asyncio.StreamReader, head: str) -> bytes:
        if "transfer-encoding: chunked" in head:
            body = b""
            while size := int((await reader.readline()).strip(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
            return body
        length = re.search(r"content-length: (\d+)", head)
        return await reader.readexactly(int(length[1])) if length else b""

    async def _dialled(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect to the ``host port`` or ``socket 0`` of the first line, and answer with a byte.

        Its way to the host and back is what a connection takes.
        """
        try:
            host, _ = (await reader.readline()).decode().split()
        except (OSError, ValueError):
            writer.close()
            return
        await asyncio.sleep(self.latency)
        if host == "127.0.0.1":  # on the host itself nobody listens yet
            writer.close()
            return
        writer.write(b"+")

        async def respond(method: str, path: str, body: bytes) -> Answer:
            if host == str(socket_of(Names().guard)):
                return await asyncio.to_thread(self._guard, method, path, body)
            return self._admin(path) if host == str(socket_of(Names().edge)) else self._health(host)

        await self._serve(reader, writer, respond)

    # --- guard, Envoy's admin socket, instances ------------------------------------------------------------------------

    def _guard(self, method: str, path: str, body: bytes) -> Answer:
        action = path.strip("/")
        if method == "GET":
            return _json({"status": self.guard.status, "journal": self.guard.events, "files": self.guard.files}[action]())
        try:
            return _json(getattr(self.guard, action)(json.loads(body)))
        except RefusedError as error:
            return _json({"error": str(error)}, 409)

    def _admin(self, path: str) -> Answer:
        files = self.guard.files()
        if path.startswith("/config_dump"):
            routes = json.loads(files["routes.json"])["resources"] if files else []
            return _json({"configs": [{"route_config": route} for route in routes]})
        if path.startswith("/stats"):
            return _json({"stats": []})
        hosts = admin.expected_hosts(EdgeState.from_document(json.loads(files["edge.json"]))) if files else {}
        statuses = []
        for name, addresses in hosts.items():
            parts = [address.rpartition(":") for address in addresses]
            sockets = [{"address": host, "port_value": int(port)} for host, _, port in parts]
            statuses.append({"name": name, "host_statuses": [{"address": {"socket_address": socket}, "stats": []} for socket in sockets]})
        return _json({"cluster_statuses": statuses})

    def _health(self, address: str) -> Answer:
        for container in self.containers.values():
            if container["address"] == address and container["running"]:
                env = dict(pair.split("=", 1) for pair in container["body"].get("Env") or [])
                return _json({"status": "healthy", "version": env.get("VERSION", "")})
        return _json({"status": "nobody is at this address"}, 503)

    # --- Docker --------------------------------------------------------------------------------------------------------

    async def docker(self, method: str, path: str, body: bytes) -> Answer:
        """Answer one request of the Docker SDK."""
        parts = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        words = re.sub(r"^/v[\d.]+", "", parts.path).strip("/").split("/")
        document = json.loads(body) if body and words[-1] != "archive" else {}
        if words[0] == "containers":
            return self._containers(method, words[1:], query, document)
        if words[0] == "networks":
            return self._networks(words[1:], json.loads(query.get("filters", "{}")), document)
        plain = {
            "_ping": {},
            "version": {"ApiVersion": "1.41", "MinAPIVersion": "1.12"},
            "info": {"MemTotal": 64 << 30},
            "volumes": {"Name": document.get("Name")},
            "images": {"Id": "sha256:" + "0" * 64, "RepoTags": [], "Config": {"User": "app"}},
        }
        return _json(plain[words[0]])

    def _networks(self, words: Sequence[str], filters: dict[str, Any], document: dict[str, Any]) -> Answer:
        if words == ["create"]:
            self.networks[document["Name"]] = {"Id": document["Name"], **document}
            return _json({"Id": document["Name"]}, 201)
        if not words or not words[0]:
            patterns = filters.get("name", [])
            return _json([network for name, network in self.networks.items() if all(re.search(pattern, name) for pattern in patterns)])
        return _json(self.networks.get(words[0], {}))

    def _containers(self, method: str, words: Sequence[str], query: dict[str, str], document: dict[str, Any]) -> Answer:
        if words == ["json"]:
            return _json([self._listed(name) for name in self.containers if self._matches(name, query)])
        if words == ["create"]:
            endpoints = (document.get("NetworkingConfig") or {}).get("EndpointsConfig") or {"none": {}}
            ((network, endpoint),) = endpoints.items()
            address = endpoint["IPAMConfig"]["IPv4Address"] if endpoint else ""
            self.containers[query["name"]] = {"body": document, "network": network, "address": address, "running": False}
            return _json({"Id": query["name"], "Warnings": []}, 201)
        name, action = words[0], words[-1]
        if name not in self.containers:
            return _json({"message": f"No such container: {name}"}, 404)
        if method == "GET":
            return (200, b"0") if action == "logs" else _json(self._inspected(name))  # a log tells the group of a socket
        if action == "wait":
            return _json({"StatusCode": 0})
        if method == "DELETE":
            del self.containers[name]
        elif action in {"start", "stop"}:
            self.containers[name]["running"] = action == "start"
        return (200, b"") if method == "PUT" else (204, b"")

    def _matches(self, name: str, query: dict[str, str]) -> bool:
        container, filters = self.containers[name], json.loads(query.get("filters", "{}"))
        labels = container["body"].get("Labels") or {}
        pairs = [text.partition("=") for text in filters.get("label", [])]
        return (
            (container["running"] or query.get("all") == "1" or "status" in filters)
            and all(key in labels and (not equals or labels[key] == value) for key, equals, value in pairs)
            and all(re.search(pattern, f"/{name}") for pattern in filters.get("name", []))
            and all(container["running"] == (status == "running") for status in filters.get("status", []))
            and all(container["network"] == network for network in filters.get("network", []))
        )

    def _listed(self, name: str) -> dict[str, Any]:
        container = self.containers[name]
        endpoint = {"IPAddress": container["address"] if container["running"] else "", "IPAMConfig": {"IPv4Address": container["address"]}}
        state = "running" if container["running"] else "exited"
        labels = container["body"].get("Labels") or {}
        bindings = (container["body"].get("HostConfig") or {}).get("PortBindings") or {}
        published = [binding["HostPort"] for ports in bindings.values() for binding in ports]
        return {
            "Id": name,
            "Names": [f"/{name}"],
            "Labels": labels,
            "State": state,
            "Ports": [{"PublicPort": int(port)} for port in published] if container["running"] else [],
            "NetworkSettings": {"Networks": {container["network"]: endpoint}},
        }

    def _inspected(self, name: str) -> dict[str, Any]:
        container, listed = self.containers[name], self._listed(name)
        settings = {"Labels": listed["Labels"], "Image": container["body"].get("Image"), "Env": container["body"].get("Env"), "Tty": True}
        memory = {"Memory": (container["body"].get("HostConfig") or {}).get("Memory") or 0}
        return {**listed, "Name": f"/{name}", "Config": settings, "State": {"Status": listed["State"]}, "HostConfig": memory}


async def serve(folder: Path, number: int, latency: float, lease: float) -> None:
    """Serve until ended."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(number))  # the guards write and sync at once
    hosts = [Host(folder, index, latency, lease) for index in range(number)]
    print(json.dumps([await host.start() for host in hosts]), flush=True)
    while True:
        await asyncio.sleep(0.1)
        for host in hosts:
            host.guard.check()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))
