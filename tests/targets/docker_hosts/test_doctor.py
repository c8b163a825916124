"""doctor names what a production host lacks: real sshds of every kind at once, each with a Docker socket of its own."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import pytest

from azora_ci.core import config
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import BadInputError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.core.settings import ProductionHosts
from azora_ci.core.variables import Secret
from azora_ci.targets.base import TargetContext
from azora_ci.targets.docker_hosts import doctor
from azora_ci.targets.findings import Finding
from tests.support import deploy_config
from tests.support.sshd import DockerStandIn, Sshd, free_port

KINDS = {
    "both": ("AllowTcpForwarding yes", "AllowStreamLocalForwarding yes"),
    "no_tcp": ("AllowTcpForwarding no", "AllowStreamLocalForwarding yes"),
    "no_stream": ("AllowTcpForwarding yes", "AllowStreamLocalForwarding no"),
    "neither": ("DisableForwarding yes",),
}


class Host(Sshd):
    """An sshd that sees a Docker socket where production has it."""

    def __init__(self, folder: Path, docker_socket: Path, *options: str) -> None:
        super().__init__(folder, *options)
        mounts = 'mount -t tmpfs tmpfs /run && mkdir /run/sshd && ln -s "$0" /run/docker.sock && exec "$@"'
        self.prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mounts, str(docker_socket)]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    with tempfile.TemporaryDirectory(prefix="az-") as short:
        docker = DockerStandIn(Path(short) / "d.sock")
        servers = {kind: Host(tmp_path_factory.mktemp(kind), Path(short) / "d.sock", *options) for kind, options in KINDS.items()}
        for server in servers.values():
            (server.folder / "authorized_keys").write_text(servers["both"].key_file.with_suffix(".pub").read_text())
            server.start()
        yield servers
        for server in servers.values():
            server.stop()
        docker.close()


def access(hosts: dict[str, Host], addresses: list[str], known_hosts: str | None) -> ProductionHosts:
    permissive = hosts["both"]
    return ProductionHosts(
        prod_host=Secret(",".join(addresses)),
        kubeconfig_data=None,
        prod_jump_host=None,
        prod_user=Secret(permissive.user),
        prod_key=Secret(permissive.key),
        prod_known_hosts=known_hosts,
        prod_accept_new_host_key=False,
        pull_username=None,
        pull_password=None,
        docker_username=None,
        docker_password=None,
    )


def examine(tmp_path: Path, production_hosts: ProductionHosts) -> list[Finding]:
    images = {"edge_image": "r.example/edge@sha256:" + "0" * 64, "guard_image": "r.example/python@sha256:" + "0" * 64}
    target = {"kind": "docker_hosts", "docker_hosts": images}
    loaded = config.load(deploy_config.write(tmp_path / "d.toml", target=target, edge=None, registry={"repository": "r.example/azora"}))
    processes = Processes(JobLog(Actions(stream=io.StringIO()), Clock()))
    try:
        return doctor.findings(TargetContext(loaded, processes, Clock(), tmp_path, 10.0, access=production_hosts))
    finally:
        processes.end_all()


def test_every_host_is_examined_and_the_missing_line_named(hosts, tmp_path):
    stranger, nobody = hosts["neither"], f"127.0.0.1:{free_port()}"
    addresses = {kind: f"127.0.0.1:{host.port}" for kind, host in hosts.items()}
    prefixes = {kind: f"host-{number}: " for number, kind in enumerate((*addresses, "nobody"), 1)}
    known_hosts = "".join(host.known_hosts for host in hosts.values() if host is not stranger)
    known_hosts += f"[127.0.0.1]:{stranger.port} " + hosts["both"].known_hosts.partition(" ")[2]  # another host's key
    findings = examine(tmp_path, access(hosts, [*addresses.values(), nobody], known_hosts))

    def findings_of(kind: str) -> dict[str, Finding]:
        prefix = prefixes[kind]
        return {finding.name.removeprefix(prefix): finding for finding in findings if finding.name.startswith(prefix)}

    def failed(kind: str) -> list[str]:
        return [name for name, finding in findings_of(kind).items() if not finding.passed]

    assert (findings[0].name, findings[0].detail) == ("hosts", "the others answer")
    assert [finding.passed for name, finding in findings_of("both").items() if name in {"connection", "host key"}] == [True, True]
    assert findings_of("both")["host key"].detail.endswith(", pinned")
    assert failed("both") == ["Docker"]  # what answers there is none

    assert failed("no_tcp") == ["AllowTcpForwarding"]
    assert "set AllowTcpForwarding yes" in findings_of("no_tcp")["AllowTcpForwarding"].next_step

    assert failed("no_stream") == ["AllowStreamLocalForwarding"]
    step = findings_of("no_stream")["AllowStreamLocalForwarding"].next_step
    assert "set AllowStreamLocalForwarding yes" in step
    assert "group docker" in step

    assert failed("neither") == failed("nobody") == ["connection"]
    assert "Host key does not match" in findings_of("neither")["connection"].detail
    assert "cannot be reached" in findings_of("nobody")["connection"].detail


def test_forwarding_that_is_disabled_altogether_is_named(hosts, tmp_path):
    server = hosts["neither"]
    findings = examine(tmp_path, access(hosts, [f"127.0.0.1:{server.port}"], server.known_hosts))
    lacking = [finding.name.rpartition(" ")[2] for finding in findings if not finding.passed]
    assert lacking == ["AllowTcpForwarding"]
    assert "DisableForwarding" in next(finding.next_step for finding in findings if not finding.passed)


def test_access_that_is_not_set_is_named(hosts, tmp_path):
    with pytest.raises(BadInputError, match="No host key is pinned"):
        examine(tmp_path, access(hosts, ["127.0.0.1"], None))


@pytest.mark.parametrize(
    ("docker_timestamp", "expected"),
    [
        ("2026-11-24T14:25:43.200123456Z", "2026-11-24T14:25:43.200123Z"),
        ("2026-11-24T14:25:43.2+01:00", "2026-11-24T14:25:43.200000+01:00"),
        ("2026-11-24T14:25:43Z", "2026-11-24T14:25:43Z"),
    ],
)
def test_docker_tells_nanoseconds(docker_timestamp, expected):
    assert doctor.to_microseconds(docker_timestamp) == expected
