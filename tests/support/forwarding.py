"""Pods whose ports are forwarded: one that talks, and one that passes connections on to a database of this machine."""

from __future__ import annotations

import io
import json
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from azora_ci.clients.kubernetes import kubeconfig
from azora_ci.clients.kubernetes.api import Api
from azora_ci.clients.kubernetes.forward import Forward
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.config import ForwardSettings
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.rehearsal.kubernetes.cluster import Cluster
from azora_ci.targets.kubernetes import manifests
from tests.support.waiting import until

PORT = 5432
# "e" echoes, "g" gives 96 MiB, "n" says the pod's name; with an upstream all is passed on, until so many bytes went to the client.
POD = """#!{python} -S
import os, socket, threading
UPSTREAM, LIMIT = {upstream}, {limit}
def talk(client):
    kind = client.recv(1)
    if kind == b"e":
        while data := client.recv(65536):
            client.sendall(data)
    elif kind == b"g":
        for _ in range(1536):
            client.sendall(bytes(65536))
    elif kind == b"n":
        client.sendall(os.environ["HOSTNAME"].encode())
def copy(source, sink, limit=None):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
            if limit is not None:
                limit -= len(data)
                if limit < 0:
                    os._exit(1)
    except OSError:
        pass
    for end in (source, sink):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
def serve(client):
    with client:
        try:
            if UPSTREAM is None:
                return talk(client)
            with socket.create_connection(("127.0.0.1", UPSTREAM)) as server:
                threading.Thread(target=copy, args=(client, server), daemon=True).start()
                copy(server, client, LIMIT)
        except OSError:
            pass
listener = socket.create_server((os.environ["POD_IP"], 5432), backlog=64)
while True:
    client, _ = listener.accept()
    threading.Thread(target=serve, args=(client,), daemon=True).start()
"""


class Place:
    """A namespace with a Service ``postgres`` and pods behind it."""

    def __init__(self, cluster: Cluster, folder: Path, *, upstream: int | None = None, limit: int | None = None) -> None:
        self.cluster, self.folder = cluster, folder
        self.namespace = f"database-{uuid.uuid4().hex[:8]}"
        program = folder / f"pod-{self.namespace}"
        program.write_text(POD.format(python=sys.executable, upstream=upstream, limit=limit))
        program.chmod(0o755)
        self.image = cluster.image(program)
        service = {"selector": {"app": "postgres"}, "ports": [{"port": 80, "targetPort": PORT}]}
        cluster.apply(
            json.dumps({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "postgres"}, "spec": service}), self.namespace
        )

    @property
    def pods(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods"

    def add(self, name: str) -> None:
        """Start a pod and wait until it listens."""
        container = {"name": "app", "image": self.image}
        pod = {"metadata": {"name": name, "labels": {"app": "postgres"}}, "spec": {"containers": [container]}}
        self.cluster.apply(json.dumps({"apiVersion": "v1", "kind": "Pod", **pod}), self.namespace)

        def listens() -> bool:
            try:
                with self.forward(pod=name).dial() as stream:
                    return stream.pod == name and not self._refuses(name)
            except Exception:
                return False

        until(listens, f"pod {name} listens")

    def _refuses(self, name: str) -> bool:
        import socket

        status = self.cluster.api.get(f"{self.pods}/{name}")["status"]
        try:
            socket.create_connection((status["podIP"], PORT), 1).close()
        except OSError:
            return True
        return False

    def remove(self, name: str) -> None:
        """End a pod at once."""
        self.cluster.api.delete(f"{self.pods}/{name}", gracePeriodSeconds=0)

    def settings(self, **changes: Any) -> ForwardSettings:
        given = changes if "pod" in changes else {"service": "postgres", **changes}
        return ForwardSettings(**{"namespace": self.namespace, "port": PORT, **given})

    def forward(self, access: Path | None = None, say: Callable[[str], None] = lambda _: None, **changes: Any) -> Forward:
        """Return a forward, as the administrator or with another kubeconfig."""
        return Forward(api_of(access or self.cluster.kubeconfig), self.settings(**changes), Clock(), say)

    def user(self, name: str, without: tuple[str, ...] = (), **changes: Any) -> Path:
        """Return the kubeconfig of a user with exactly the rights that lead to the database, but for those of some texts."""
        rights = manifests.rights_to_database(self.settings(**changes))
        kept = tuple(right for right in rights if str(right) not in without)
        return self.cluster.user(name, manifests.rules(kept), self.namespace)


def api_of(access: Path) -> Api:
    """Return our client with a kubeconfig."""
    clock = Clock()
    return Api(kubeconfig.parse(access.read_text(), None), Processes(JobLog(Actions(stream=io.StringIO()), clock)), clock)
