"""A Kubernetes cluster of processes on this machine: control plane, one node or more, Argo Rollouts, and an edge that users ask.

Servers listen on loopback, at ports that the kernel chose, and die with the process that started them. RBAC is on; the controller of
Argo Rollouts has the rights of its official manifest. Pods have addresses of 198.18.0.0/16 (RFC 2544: never a real network) where this
process is root, so that the API server can reach them; else of 127.77.0.0/16, to which it refuses to proxy.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from azora_ci.core.clock import Clock
from azora_ci.core.documents import read_json
from azora_ci.core.environment import child_environment
from azora_ci.core.errors import AzoraError, UnreachableError
from azora_ci.core.process import Processes, is_alive, send_signal
from azora_ci.database.cluster import free_port
from azora_ci.health.probes import ProbeRequest, fetch, unix_dial
from azora_ci.rehearsal.kubernetes import credentials
from azora_ci.rehearsal.kubernetes.api import LIMITS, Api, Document
from azora_ci.rehearsal.kubernetes.build import Binaries

API_SERVER, MANAGER, SCHEDULER = "kube-apiserver", "kube-controller-manager", "kube-scheduler"
CONTROLLER, ETCD, ROUTER, ENVOY = "rollouts-controller", "etcd", "router", "envoy"
ARGO_SPACE = "argo-rollouts"
START_SECONDS = 120.0
END_SECONDS = 5.0  # for a node to end its pods
TOKEN_SECONDS = 24 * 3600
POLL_SECONDS = 0.05
# What makes pods of ReplicaSets, and what they need. Nothing that writes EndpointSlices, which refuse addresses of loopback.
CONTROLLERS = (
    "garbage-collector-controller", "job-controller", "namespace-controller", "node-lifecycle-controller", "replicaset-controller",
    "root-ca-certificate-publisher-controller", "serviceaccount-controller", "serviceaccount-token-controller", "taint-eviction-controller",
)  # fmt: skip


class Cluster:
    """A running cluster; use it as a context manager, on a thread that lives as long as it does.

    ``kubeconfig`` is the administrator's file, ``api`` a client with it, ``edge`` the address (host:port) that stands for an ingress
    controller: it follows Ingresses, with the annotations of nginx's canaries, and the selectors of Services.
    """

    def __init__(self, folder: Path, binaries: Binaries, processes: Processes, clock: Clock, *, nodes: int = 1) -> None:
        self.folder = folder.resolve()
        self.nodes = tuple(f"node-{number}" for number in range(1, nodes + 1))
        self.edge = ""
        self._binaries = binaries
        self._processes = processes
        self._clock = clock
        self._pids: dict[str, int] = {}
        self._commands: dict[str, Sequence[str]] = {}
        self._ready: dict[str, Callable[[], bool]] = {}
        self._reserved = ExitStack()  # what is given back at the end: addresses, and the routes to them
        self._sockets = ""
        self._networks: list[str] = []  # first three bytes of the addresses of each node and its pods
        self._server = ""
        self._certificate = self.folder / "certificates" / "apiserver.crt"

    def __enter__(self) -> Cluster:
        try:
            self._start_all()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # --- for whoever uses it -------------------------------------------------------------------------------------------

    @property
    def kubeconfig(self) -> Path:
        """Return the file of the administrator."""
        return self.folder / "kubeconfig"

    def document(self) -> Document:
        """Return where everything is."""
        places = {"kubeconfig": str(self.kubeconfig), "edge": self.edge, "admin": str(self._admin), "images": str(self.folder / "images")}
        return {**places, "components": dict(self._pids)}

    @property
    def _admin(self) -> Path:
        # In a folder with a short path: a socket's may have 107 bytes.
        return Path(self._sockets) / "admin"

    def image(self, executable: Path, name: str = "app") -> str:
        """Have nodes know an executable as an image; return its reference by digest."""
        content = executable.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        path = self.folder / "images" / "sha256" / digest
        if not path.exists():
            part = path.with_suffix(f".{os.getpid()}.part")
            part.write_bytes(content)
            part.chmod(0o755)
            part.rename(path)
        return f"registry.example/{name}@sha256:{digest}"

    def apply(self, manifests: str, namespace: str = "default") -> None:
        """Have the objects of YAML documents exist as these say; their namespace as well."""
        self.api.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}])
        account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"  # without it no pod is admitted
        self._until(lambda: _is_success(lambda: self.api.get(account)), MANAGER)
        self.api.apply(manifests, namespace)

    def user(self, name: str, rules: list[Document], namespace: str = "default", seconds: int = TOKEN_SECONDS) -> Path:
        """Return the kubeconfig of a service account with these RBAC rules in the namespace; the token lives 600 seconds at least."""
        meta = {"name": name, "namespace": namespace}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
        subject = {"kind": "ServiceAccount", **meta}
        documents: list[Document] = [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": meta, "rules": rules},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": meta, "roleRef": role, "subjects": [subject]},
        ]
        self.apply(yaml.safe_dump_all(documents), namespace)
        return self._write_kubeconfig(f"kubeconfig-{namespace}-{name}", self.token(name, namespace, seconds), namespace)

    def token(self, account: str, namespace: str, seconds: int = TOKEN_SECONDS) -> str:
        """Return a new token of a service account; it ends with the account."""
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": seconds}}
        token: str = self.api.create(f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token", request)["status"]["token"]
        self._processes.log.add_secret(token)
        return token

    def log(self, component: str) -> Path:
        """Return the file that a component writes its output to."""
        return self.folder / "logs" / f"{component}.log"

    def kill(self, component: str) -> None:
        """End a component at once, as a crash would. With a node its pods end."""
        pid = self._pids.pop(component, 0)
        if pid:
            send_signal(pid, signal.SIGKILL)
            while is_alive(pid):
                self._clock.sleep(POLL_SECONDS)

    def kill_pod(self, pod: Document) -> None:
        """Kill the process of a pod, as a crash of its container would."""
        process = pod["status"]["containerStatuses"][0]["containerID"]
        send_signal(int(process.removeprefix("process://")), signal.SIGKILL)

    def edge_weights(self, host: str) -> dict[str, int]:
        """Return Service -> percentage of the host's users, as the edge really has it."""
        dump = fetch(ProbeRequest("http://admin/config_dump?resource=dynamic_route_configs", dial=unix_dial(self._admin)), 5.0, self._clock)
        tables = [entry["route_config"] for entry in read_json(dump.body, LIMITS).get("configs", [])] if dump.status == 200 else []
        routes = [route for table in tables for each in table["virtual_hosts"] if each["domains"] == [host] for route in each["routes"]]
        clusters = routes[0]["route"]["weighted_clusters"]["clusters"] if routes else []
        return {cluster["name"].split(".")[1]: cluster.get("weight", 0) for cluster in clusters}

    def restart(self, component: str) -> None:
        """Start a component (again) as it was, and wait until it answers. Raises UnreachableError."""
        self.kill(component)
        self._run(component)
        self._wait(component)

    def restart_ended(self) -> None:
        """Start each component again that has ended."""
        for component in [name for name, pid in self._pids.items() if not is_alive(pid)]:
            self.restart(component)

    def close(self) -> None:
        """End everything: nodes first, with their pods."""
        living = [self._pids[name] for name in self.nodes if name in self._pids]
        for pid in living:
            send_signal(pid, signal.SIGTERM)
        deadline = self._clock.monotonic() + END_SECONDS
        while any(map(is_alive, living)) and self._clock.monotonic() < deadline:
            self._clock.sleep(POLL_SECONDS)
        for name in list(self._pids):
            self.kill(name)
        self._reserved.close()
        if self._sockets:
            shutil.rmtree(self._sockets, ignore_errors=True)

    def _write_kubeconfig(self, name: str, token: str, namespace: str = "default") -> Path:
        return credentials.kubeconfig(self.folder / name, self._server, self._certificate, token, namespace)

    # --- starting ------------------------------------------------------------------------------------------------------

    def _start_all(self) -> None:
        for name in ("logs", "pods", "images/sha256", "etcd", "edge"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "etcd").chmod(0o700)  # or etcd warns
        self._sockets = tempfile.mkdtemp(prefix="kubebox-")
        token = secrets.token_hex(24)
        self._processes.log.add_secret(token)
        self._start_api_server(token)
        self._start_servers()
        for name in self.nodes:
            self._start_node(name)
        self._install_argo()
        self._start_edge()
        self.apply("")
        for name in (CONTROLLER, ENVOY):
            self._wait(name)

    def _start(self, name: str, *argv: str | Path, ready: Callable[[], bool] | None = None) -> None:
        # The kernel ends the server when the thread that started it ends, however that happens.
        self._commands[name] = (_program("setpriv"), "--pdeathsig", "KILL", *map(str, argv))
        if ready is not None:
            self._ready[name] = ready
        self._run(name)

    def _run(self, name: str) -> None:
        self._pids[name] = self._processes.start_detached(
            self._commands[name], env=child_environment(), log=self.log(name), cwd=self.folder
        )

    def _wait(self, name: str) -> None:
        if name in self._ready:
            self._until(self._ready[name], name)

    def _until(self, condition: Callable[[], bool], name: str) -> None:
        deadline = self._clock.monotonic() + START_SECONDS
        while not condition():
            alive = is_alive(self._pids[name])
            if not alive or self._clock.monotonic() > deadline:
                tail = self.log(name).read_text(encoding="utf-8", errors="replace")[-1500:]
                raise UnreachableError(
                    f"{name} does not answer",
                    what=f"{f'nothing within {START_SECONDS:g} s' if alive else 'it ended'}\n{tail}",
                    where=str(self.log(name)),
                    next_step="read its log there",
                )
            self._clock.sleep(POLL_SECONDS)

    def _start_api_server(self, token: str) -> None:
        client, peer, port = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}", free_port()
        key, public, tokens = self.folder / "accounts.key", self.folder / "accounts.pub", self.folder / "tokens.csv"
        credentials.account_keys(key, public)
        credentials.private(tokens, f"{token},admin,admin,system:masters\n")
        self._start(ETCD, self._binaries.kubebox, "etcd", self.folder / "etcd", client, peer)
        self._server = f"https://127.0.0.1:{port}"
        # It writes the certificate, for itself, when it starts; nothing can be asked before.
        self._write_kubeconfig("kubeconfig", token)
        self.api = Api(self.kubeconfig)
        self._start(
            API_SERVER,
            self._binaries.kubebox,
            API_SERVER,
            f"--etcd-servers={client}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={port}",
            f"--cert-dir={self._certificate.parent}",
            "--endpoint-reconciler-type=none",  # its own address is one of loopback
            "--service-cluster-ip-range=10.96.0.0/24",
            "--authorization-mode=RBAC",
            f"--token-auth-file={tokens}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={key}",
            f"--service-account-key-file={public}",
            "--service-account-extend-token-expiration=false",
            "--default-not-ready-toleration-seconds=5",  # until pods of a lost node are replaced; usually 300
            "--default-unreachable-toleration-seconds=5",
            "--enable-priority-and-fairness=false",
            "--kubelet-preferred-address-types=InternalIP",
            ready=lambda: self._certificate.exists() and _is_success(lambda: self.api.get("/readyz")),
        )
        self._wait(API_SERVER)

    def _start_servers(self) -> None:
        for name, flags in (
            (
                MANAGER,
                (
                    f"--controllers={','.join(CONTROLLERS)}",
                    f"--service-account-private-key-file={self.folder / 'accounts.key'}",
                    f"--root-ca-file={self._certificate}",
                    "--node-monitor-period=1s",
                    "--node-monitor-grace-period=20s",  # until a silent node counts as lost; usually 50
                ),
            ),
            (SCHEDULER, ()),
        ):
            access = [f"--{flag}={self.kubeconfig}" for flag in ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")]
            own = ("--leader-elect=false", "--bind-address=127.0.0.1", f"--secure-port={free_port()}", f"--cert-dir={self.folder / name}")
            self._start(name, self._binaries.kubebox, name, *access, "--authentication-skip-lookup=true", *own, *flags)

    def _start_node(self, name: str) -> None:
        flags = (f"--name={name}", f"--network={self._network()}", f"--images={self.folder / 'images'}", f"--logs={self.folder / 'pods'}")
        # What it mounts for pods is gone with it.
        space = (_program("unshare"), "--mount", "--propagation", "private") if os.geteuid() == 0 else ()
        self._start(name, *space, self._binaries.podnode, f"--kubeconfig={self.kubeconfig}", *flags)

    def _network(self) -> str:
        """Return the first three bytes of addresses that no other cluster has, for as long as this process lives."""
        root = os.geteuid() == 0
        for third in range(256):
            network = f"{'198.18' if root else '127.77'}.{third}"
            with suppress(OSError):  # it is another cluster's, or its file another person's
                lock = Path(tempfile.gettempdir(), f"azora-pods-{network}.lock")
                file = self._reserved.enter_context(lock.open("a", encoding="utf-8"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if root:
                    route = (f"{network}.0/24", "dev", "lo")
                    self._processes.run((_program("ip"), "route", "replace", "local", *route), echo=False)
                    remove = (_program("ip"), "route", "del", "local", *route)
                    self._reserved.callback(self._processes.run, remove, echo=False, check=False)
                self._networks.append(network)
                return network
        raise UnreachableError(
            "No addresses for pods",
            what="256 nodes of other clusters have all that there are",
            where=f"{tempfile.gettempdir()}/azora-pods-*.lock",
            next_step="end the clusters of other rehearsals",
        )

    def _install_argo(self) -> None:
        documents = list(yaml.load_all(self._binaries.install.read_text(encoding="utf-8"), _Loader))
        definitions = [document for document in documents if document and document["kind"] == "CustomResourceDefinition"]
        # Its Deployment and Service stay away: the controller is a process here.
        others = [
            document
            for document in documents
            if document and document not in definitions and document["kind"] not in {"Deployment", "Service"}
        ]
        self.apply("", ARGO_SPACE)
        self.api.apply([*definitions, *others], ARGO_SPACE)
        for definition in definitions:
            path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{definition['metadata']['name']}"
            self._until(lambda path=path: _is_established(self.api.get(path)), API_SERVER)  # type: ignore[misc] # bound early
        kubeconfig = self._write_kubeconfig("kubeconfig-argo", self.token("argo-rollouts", ARGO_SPACE), ARGO_SPACE)
        health = free_port()
        self._start(
            CONTROLLER,
            self._binaries.controller,
            f"--kubeconfig={kubeconfig}",
            "--leader-elect=false",
            f"--metricsPort={free_port()}",
            f"--healthzPort={health}",
            ready=lambda: _answers(f"http://127.0.0.1:{health}/healthz", self._clock),
        )

    def _start_edge(self) -> None:
        folder = self.folder / "edge"
        # Users do not reach loopback; the last address of the first node's is no pod's.
        address, port = (f"{self._networks[0]}.255", 80) if os.geteuid() == 0 else ("127.0.0.1", free_port())
        self.edge = f"{address}:{port}"
        self._start(ROUTER, sys.executable, "-m", "azora_ci.rehearsal.kubernetes.router", self.kubeconfig, folder, self.edge, self._admin)
        bootstrap = folder / "bootstrap.json"
        self._until(bootstrap.exists, ROUTER)
        # At the default priority of its threads: one is enough, and takes less of a small machine.
        argv = (_envoy(), "-c", bootstrap, "--disable-hot-restart", "--log-level", "warning", "--concurrency", "1")
        self._start(ENVOY, *argv, ready=lambda: _listens(address, port))


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc] # yaml has the quick one where libyaml is
    """The quick reader: the manifest has 1.6 MB."""


def _is_success(call: Callable[[], Any]) -> bool:
    with suppress(AzoraError, OSError):
        call()
        return True
    return False


def _is_established(definition: Document) -> bool:
    conditions = definition.get("status", {}).get("conditions", [])
    return any(condition["type"] == "Established" and condition["status"] == "True" for condition in conditions)


def _answers(url: str, clock: Clock) -> bool:
    return fetch(ProbeRequest(url), 2.0, clock).status == 200


def _listens(address: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((address, port), timeout=1):
        return True
    return False


def _program(name: str) -> str:
    path = shutil.which(name, path=f"{os.defpath}{os.pathsep}/usr/sbin{os.pathsep}/sbin")
    if path is None:
        raise UnreachableError(f"{name} is missing", what="the cluster is started with it", where="this machine", next_step="install it")
    return path


def _envoy() -> str:
    sibling = Path(sys.executable).parent / "envoy"
    return str(sibling) if sibling.is_file() else shutil.which("envoy") or "envoy"
