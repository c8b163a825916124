"""Production hosts for tests: each a network namespace with an address of its own, a real dockerd and a real sshd in it.

All of them are on one bridge, as in a data centre, with a registry beside them. Needs root, as the packages' daemons do.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import docker

from azora_ci.core import config
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.core.settings import ProductionHosts
from azora_ci.core.variables import Secret
from azora_ci.record import fragments
from azora_ci.rehearsal.docker import local_images
from azora_ci.targets.base import Owner, TargetContext
from azora_ci.targets.docker_hosts.target import DockerHosts
from azora_ci.targets.release import Release
from tests.support import ROOT, deploy_config, load
from tests.support import fragments_builder as build
from tests.support.docker_engine import registry, running
from tests.support.sshd import Sshd
from tests.support.waiting import until

SHA = "0123456789abcdef0123456789abcdef01234567"
OLD, NEW = "1764000000-aaaaaa", "1764000100-bbbbbb"
HTTP_PORT = 8000
SERVICES = {"api_gateway": "/api", "auth_service": "/auth"}
# A worker's image. The entrypoint is not Python's, so that what replaces it is seen.
WORKER = """ENTRYPOINT ["/app/nothing"]
CMD ["nobody"]
HEALTHCHECK --interval=1s --timeout=5s --retries=1 CMD ["python3", "-S", "/app/worker.py", "check"]"""
ROLLOUT = {"minimum_requests": 10, "latency_factor": 1000.0, "inconclusive": "abort", "drain_seconds": 2}


def ip(*arguments: str, check: bool = True) -> None:
    completed = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30, check=False)
    assert completed.returncode == 0 or not check, f"ip {' '.join(arguments)}: {completed.stderr}"


def inside(namespace: str) -> list[str]:
    """Return the beginning of a command that runs in a network namespace; ``ip netns exec`` would hide the cgroups."""
    return ["nsenter", f"--net=/run/netns/{namespace}"]


def on_host(namespace: str, run_folder: Path) -> list[str]:
    """Return the beginning of a command that runs in a host's namespaces, where ``/run`` is the host's."""
    mounts = 'mount --bind "$0" /run && exec "$@"'
    return [*inside(namespace), "unshare", "--mount", "--propagation", "private", "sh", "-c", mounts, str(run_folder)]


class HostSshd(Sshd):
    """An sshd in a host's namespaces, where /var/run/docker.sock is the host's."""

    def __init__(self, folder: Path, namespace: str, address: str, run_folder: Path) -> None:
        super().__init__(folder)
        self.address = address
        self.port = 22
        config_file = folder / "sshd_config"
        lines = [line for line in config_file.read_text().splitlines() if not line.startswith(("Port", "ListenAddress"))]
        config_file.write_text("\n".join([*lines, "Port 22", f"ListenAddress {address}"]) + "\n")
        self.prefix = on_host(namespace, run_folder)

    @property
    def known_hosts(self) -> str:
        kind, key = self.host_key.with_suffix(".pub").read_text().split()[:2]
        return f"{self.address} {kind} {key}\n"


class Machine:
    """One production host, whose dockerd has its usual firewall. ``options``: more of dockerd's."""

    options: list[str] = []  # noqa: RUF012 - replaced as a whole, by the instance

    def __init__(self, lan: Lan, number: int) -> None:
        self.name, self.address = f"{lan.name}h{number}", f"{lan.prefix}.{10 + number}"
        self.alias = f"host-{number + 1}"  # its name in logs and records: the address is a secret
        self.lan = lan
        self.folder = Path(tempfile.mkdtemp(prefix="dh"))  # short: a socket's path may have 107 characters at most
        self.run_folder = self.folder / "run"  # of the host, with Docker's socket
        (self.run_folder / "sshd").mkdir(parents=True)
        self.socket = self.run_folder / "docker.sock"
        self._stack = contextlib.ExitStack()
        self.sshd = HostSshd(self.folder / "sshd", self.name, self.address, self.run_folder)
        try:
            self._network(number)
            self.start_docker()
            self.client = docker.DockerClient(base_url=f"unix://{self.socket}", timeout=60)
            self.sshd.start()
        except BaseException:
            self.close()
            raise

    def _network(self, number: int) -> None:
        ip("netns", "add", self.name)
        outside, inside = f"{self.lan.name}v{number}", "eth0"
        ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", self.name)
        ip("link", "set", outside, "master", self.lan.name, "up")
        for command in (f"addr add {self.address}/24 dev {inside}", f"link set {inside} up", "link set lo up"):
            ip("-n", self.name, *command.split())

    def start_docker(self) -> None:
        folder = self.folder
        argv = [*on_host(self.name, self.run_folder), "dockerd", "--data-root", f"{folder}/d", "--exec-root", f"{folder}/e"]
        argv += ["--pidfile", f"{folder}/p", "-H", "unix:///run/docker.sock", "--insecure-registry", self.lan.registry]
        argv += ["--bridge=none", "--dns-opt=timeout:1", "--dns-opt=attempts:1", *self.options]  # no server answers here
        process = self._stack.enter_context(running(argv, folder / "log"))

        def answers() -> bool:
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            try:
                docker.DockerClient(base_url=f"unix://{self.socket}", timeout=10).close()
            except docker.errors.DockerException:
                return False
            return True

        until(answers, "dockerd answers", 60)

    def restart_docker(self) -> None:
        self._stack.close()
        self.start_docker()

    def containers(self, release: str | None = None) -> list[Any]:
        """Return the running instances."""
        label = "world.azora.deployment-id" + (f"={release}" if release else "")
        return self.client.containers.list(filters={"label": label})

    def reset(self) -> None:
        """Forget every deployment; images stay."""
        for container in self.client.containers.list(all=True):
            container.remove(force=True, v=True)
        for volume in self.client.volumes.list():
            volume.remove(force=True)
        for network in self.client.networks.list(names=["^az"]):
            network.remove()

    def close(self) -> None:
        self.sshd.stop()
        with contextlib.suppress(Exception):
            self.reset()
        self._stack.close()
        ip("netns", "del", self.name, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def _any_prefix() -> str:
    return f"10.{100 + secrets.randbelow(100)}.{1 + secrets.randbelow(254)}"


class Lan:
    """A bridge with hosts and a registry on it; images of edge, guard and two releases are in the registry."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"az{secrets.token_hex(4)}"  # several in one process, whose random numbers a test may have seeded
        self._stack = contextlib.ExitStack()
        self.machines: list[Machine] = []
        self.prefix = self._bridge()
        try:
            self.registry = self._stack.enter_context(registry(folder, address=f"{self.prefix}.1"))
            self.machines.append(Machine(self, 0))
            self.edge_image, self.guard_image = self._base_images()
            self.digests = {version: self._service_image(version) for version in ("1.0.0", "1.1.0")}
        except BaseException:
            self.close()
            raise

    def _bridge(self) -> str:
        ip("link", "add", self.name, "type", "bridge")
        taken = subprocess.run(["ip", "-o", "-4", "addr"], capture_output=True, text=True, timeout=30, check=True).stdout
        prefix = next(candidate for candidate in iter(_any_prefix, None) if f" {candidate}." not in taken)
        ip("addr", "add", f"{prefix}.1/24", "dev", self.name)
        ip("link", "set", self.name, "up")
        return prefix

    def _base_images(self) -> tuple[str, str]:
        processes, client = Processes(JobLog(Actions(stream=io.StringIO()), Clock())), self.machines[0].client
        local_images.envoy(client, processes, f"{self.registry}/edge:local")
        local_images.python(client, processes, f"{self.registry}/guard:local")
        return self.push("edge"), self.push("guard")

    def push(self, name: str, tag: str = "local") -> str:
        client = self.machines[0].client
        for line in client.api.push(f"{self.registry}/{name}", tag=tag, stream=True, decode=True):
            assert "error" not in line, line
            digest = (line.get("aux") or {}).get("Digest")
            if digest:
                return f"{self.registry}/{name}@{digest}"
        raise AssertionError("no digest")

    def _service_image(self, version: str) -> dict[str, str]:
        return {service: self.image(service, version, 'ENTRYPOINT ["python3", "/app/service.py"]') for service in SERVICES}

    def image(self, service: str, version: str, instructions: str) -> str:
        """Build and push an image with the sample programs in /app, and return its digest."""
        context = io.BytesIO()
        dockerfile = f"FROM {self.registry}/guard:local\nCOPY . /app/\n{instructions}\n"
        with tarfile.open(fileobj=context, mode="w") as tar:
            tar.add(ROOT / "tests/support/sample_service.py", "service.py")
            tar.add(ROOT / "tests/support/sample_worker.py", "worker.py")
            tar.add(ROOT / "tests/support/sample_once.py", "once.py")
            for name, text in (("Dockerfile", dockerfile), ("RELEASE", f"{service} {version}\n")):
                info = tarfile.TarInfo(name)
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text.encode()))
        context.seek(0)
        tag = f"{self.registry}/{service}:v{version}"
        self.machines[0].client.images.build(fileobj=context, custom_context=True, tag=tag, rm=True)
        return self.push(service, f"v{version}").rpartition("@")[2]

    def more(self, number: int) -> list[Machine]:
        """Return so many machines, started when they are needed first."""
        while len(self.machines) < number:
            self.machines.append(Machine(self, len(self.machines)))
        return self.machines[:number]

    def close(self) -> None:
        for machine in self.machines:
            machine.close()
        self._stack.close()
        ip("link", "del", self.name, check=False)


@contextmanager
def lan(folder: Path) -> Iterator[Lan]:
    network = Lan(folder)
    try:
        yield network
    finally:
        network.close()


def get(address: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    return load.get((address, HTTP_PORT), path, headers=headers)


class Load(load.Load):
    """A load on the hosts' edges in turn."""

    def __init__(self, world: World, *, pause: float = 0.02) -> None:
        super().__init__([(machine.address, HTTP_PORT) for machine in world.machines], world.paths, pause=pause)


class World:
    """Some of the machines, without any deployment; ``deploy_old()`` puts 1.0.0 there, ``start()`` runs the real step."""

    health: ClassVar[dict[str, Any]] = {}  # the health settings of each service

    def __init__(
        self,
        lan: Lan,
        folder: Path,
        machines: int = 1,
        *,
        lease: float = 6.0,
        services: tuple[str, ...] = tuple(SERVICES),
        backup: dict[str, str] | None = None,
        workers: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self.lan, self.folder = lan, folder
        self.machines = lan.more(machines)
        for machine in self.machines:
            machine.reset()
        self.flags = folder / "flags"
        self.flags.mkdir()
        self.clock = Clock()
        self.lease = lease
        self.services = services
        self.workers = workers or {}  # service id -> keys beside those that every worker has
        self._worker_images = {version: {name: lan.image(name, version, WORKER) for name in self.workers} for version in lan.digests}
        self.rollout: dict[str, Any] = dict(ROLLOUT)
        self.host_settings: dict[str, Any] = {}
        self.edge_settings: dict[str, Any] = {}
        self.backup = backup
        self.steps: list[subprocess.Popen[str]] = []
        self.config_path = self.configure()
        self.config = config.load(self.config_path)

    def configure(self) -> Path:
        """Write the deployment configuration."""
        services = {}
        for name in self.services:
            prefix = SERVICES[name]
            services[name] = deploy_config.service(
                name.replace("_", " "),
                f"http://{self.machines[0].address}:{HTTP_PORT}{prefix}/health",
                instances=2 if name == "api_gateway" else 1,
                env={"FLAGS": "/flags"},
                volumes=[f"{self.flags}:/flags"],
                allow_host_paths=[str(self.flags)],
                stop_grace_seconds=3,
                memory="256m",
                depends_on=["auth_service"] if name == "api_gateway" and "auth_service" in self.services else [],
                secrets=["SERVICE_SECRET"] if name == "api_gateway" else [],
            )
            services[name] |= {"route_prefix": prefix, "health_path": f"{prefix}/health"} | ({"health": self.health} if self.health else {})
        for name, keys in self.workers.items():
            services[name] = {
                "title": name, "kind": "worker", "env": {"FLAGS": "/flags"}, "volumes": [f"{self.flags}:/flags"], "memory": "64m",
                "allow_host_paths": [str(self.flags)], "stop_grace_seconds": 3, "secrets": ["SERVICE_SECRET"], **keys,
            }  # fmt: skip
        hosts = {"edge_image": self.lan.edge_image, "guard_image": self.lan.guard_image, "http_port": HTTP_PORT, **self.host_settings}
        target = {"kind": "docker_hosts", "docker_hosts": {**hosts, "lease_seconds": self.lease}}
        smoke = {"endpoints": [{"name": "work", "url": f"http://{self.machines[0].address}:{HTTP_PORT}/api/work"}]}
        keys = {
            "smoke": smoke,
            "services": services,
            "rollout": self.rollout,
            "target": target,
            "edge": self.edge_settings or None,
            "registry": {"repository": self.lan.registry},
            **({"backup": self.backup} if self.backup else {}),
        }
        return deploy_config.write(self.folder / "deploy.toml", **keys)

    # --- releases ------------------------------------------------------------------------------------------------------

    @property
    def access(self) -> dict[str, str]:
        sshd = self.machines[0].sshd
        for machine in self.machines[1:]:  # one key opens all hosts
            (machine.sshd.folder / "authorized_keys").write_text(sshd.key_file.with_suffix(".pub").read_text())
        return {
            "PROD_HOST": ",".join(machine.address for machine in self.machines),
            "PROD_USER": sshd.user,
            "PROD_KEY": sshd.key,
            "PROD_KNOWN_HOSTS": "".join(machine.sshd.known_hosts for machine in self.machines),
        }

    def target(self, **changes: Any) -> DockerHosts:
        access = self.access | changes
        settings = ProductionHosts(
            prod_host=Secret(access["PROD_HOST"]),
            kubeconfig_data=None,
            prod_jump_host=None,
            prod_user=Secret(access["PROD_USER"]),
            prod_key=Secret(access["PROD_KEY"]),
            prod_known_hosts=access["PROD_KNOWN_HOSTS"],
            prod_accept_new_host_key=access.get("accept_new", False),
            pull_username=None,
            pull_password=None,
            docker_username=None,
            docker_password=None,
        )
        self.processes = Processes(JobLog(Actions(stream=io.StringIO()), self.clock, self.folder / "target.log"))
        secrets = {"SERVICE_SECRET": Secret("not-to-be-seen")}
        return DockerHosts(TargetContext(self.config, self.processes, self.clock, self.folder / "logs", 60.0, secrets, access=settings))

    def release(self, version: str, deployment_id: str) -> Release:
        return Release(deployment_id, f"v{version}", self.digests(version))

    def digests(self, version: str) -> dict[str, str]:
        """Return the digests of a version's images, of the services that are configured."""
        digests = self.lan.digests[version] | self._worker_images[version]
        return {name: digest for name, digest in digests.items() if name in (*self.services, *self.workers)}

    @property
    def paths(self) -> list[str]:
        """Return a path of each service that does some work."""
        return [f"{SERVICES[name]}/work" for name in self.services]

    @property
    def instances(self) -> int:
        """Return how many instances of a release run when it has all the traffic."""
        return len(self.machines) * sum(service.instances for service in self.config.web)

    def deploy_old(self) -> None:
        target, release = self.target(), self.release("1.0.0", OLD)
        with target.locked(Owner(OLD, "https://runs.example/1", "tests")):
            target.deploy(release, 100)
            target.set_weight(release, 100)
            target.promote(release)

    def flag(self, name: str) -> None:
        (self.flags / name).touch()

    def unflag(self, name: str) -> None:
        (self.flags / name).unlink()

    # --- steps ---------------------------------------------------------------------------------------------------------

    def environ(self, attempt: int, **more: str) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return inherited | self.access | {
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.machines[0].folder),  # a lost runner leaves its key and sockets behind
            "DEPLOYMENT_ID": NEW,
            "VERSION": "v1.1.0",
            "GIT_SHA": SHA,
            "DEPLOY_CONFIG": str(self.config_path),
            "DEPLOYMENT_LOG_DIR": str(self.folder / f"job-{attempt}"),
            "RECEIVED_ARTIFACTS_DIR": str(self.folder / "received"),
            "GITHUB_OUTPUT": str(self.folder / f"output-{attempt}.txt"),
            "GITHUB_STEP_SUMMARY": str(self.folder / f"summary-{attempt}.md"),
            "NEEDS": build.needs_of(self.folder / "received", more.get("DEPLOYMENT_ID", NEW)),
            "GITHUB_RUN_ID": "1",
            "GITHUB_RUN_ATTEMPT": str(attempt),
            "HEALTH_CHECK_TIMEOUT": "60",
            "HEALTH_CHECK_INTERVAL": "0.25",
            "HEALTH_CHECK_RETRIES": "4",
            "CANARY_MINUTES": "0.02",
            "PROGRESSIVE_MINUTES": "0.02",
            "FULL_MINUTES": "0.02",
            "SHORT_STAGES_REASON": "a test",
            "SERVICE_SECRET": "not-to-be-seen",
            **more,
        }  # fmt: skip

    def start(self, script: str = "gradual_rollout", attempt: int = 1, **more: str) -> subprocess.Popen[str]:
        """Start a step as a process."""
        command = [sys.executable, str(ROOT / "scripts" / f"{script}.py")]
        environ, output = self.environ(attempt, **more), subprocess.PIPE
        step = subprocess.Popen(
            command, env=environ, cwd=self.folder, stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self.steps.append(step)
        return step

    def finish(self, step: subprocess.Popen[str], seconds: float = 150) -> tuple[int, str]:
        """Wait for a step and return its exit code and output."""
        output, _ = step.communicate(timeout=seconds)
        return step.returncode, output

    def built(self) -> None:
        """Leave the fragment that build-and-push leaves."""
        services = {
            name: {"digest": digest, "reference": f"{self.lan.registry}/{name}:v1.1.0", "size_bytes": 1, "seconds": 0.1, "reused": False}
            for name, digest in self.digests("1.1.0").items()
        }
        moment = "2026-11-24T11:00:00.000Z"
        evidence = {"kind": "images", "isolation": "job", "builder": None, "services": services, "commands": [], "seconds": 0.2}
        fragment = fragments.Fragment("build-and-push", NEW, "v1.1.0", SHA, "1", 1, "ok", moment, moment, evidence)
        path = self.folder / "received" / f"build-logs-{NEW}" / "record" / "build-and-push.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(fragment.document()))

    def fragment(self, attempt: int = 1) -> fragments.Fragment:
        return fragments.read(self.folder / f"job-{attempt}" / "record" / "gradual-rollout.json")

    # --- what is seen from outside -------------------------------------------------------------------------------------

    def versions_now(self, machine: Machine | None = None, number: int = 20) -> set[str]:
        """Return the versions that answer users now."""
        versions = set()
        for host in [machine] if machine else self.machines:
            for path in self.paths:
                for _ in range(number):
                    status, _, body = get(host.address, path)
                    versions.add(json.loads(body)["version"] if status == 200 else f"HTTP {status}")
        return versions

    def edge_state(self, machine: Machine) -> dict[str, Any]:
        """Return the state that the host's volume holds."""
        volume = machine.folder / "d/volumes/azora-edge/_data/current/edge.json"
        try:
            return json.loads(volume.read_text())
        except FileNotFoundError:  # between two renames, or not there yet
            return {"canary": None, "percent": 0, "stable": None}

    def wait_for_weight(self, percent: int, step: subprocess.Popen[str] | None = None) -> None:
        """Wait until that share of traffic goes to the new release on every host."""

        def has_weight() -> bool:
            assert step is None or step.poll() is None, step.communicate()[0]
            states = [self.edge_state(machine) for machine in self.machines]
            return all((state["canary"], state["percent"]) == (NEW, percent) for state in states)

        until(has_weight, f"{percent} % for the new version", 120)

    def running(self) -> Counter[str]:
        """Return how many instances that have a route run per version, on all hosts."""
        return self._count(self.services)

    def running_workers(self) -> Counter[str]:
        """Return how many workers run per version, on all hosts."""
        return self._count(self.workers)

    def _count(self, services: Iterable[str]) -> Counter[str]:
        labels = [container.labels for machine in self.machines for container in machine.containers()]
        return Counter(label["world.azora.version"] for label in labels if label["world.azora.service"] in services)

    def close(self) -> None:
        for step in self.steps:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(step.pid, signal.SIGKILL)
            step.wait()


__all__ = ["NEW", "OLD", "Lan", "Load", "Machine", "World", "get", "lan", "time"]
