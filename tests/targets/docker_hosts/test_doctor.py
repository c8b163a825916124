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
        made = {kind: Host(tmp_path_factory.mktemp(kind), Path(short) / "d.sock", *options) for kind, options in KINDS.items()}
        for one in made.values():
            (one.folder / "authorized_keys").write_text(made["both"].key_file.with_suffix(".pub").read_text())
            one.start()
        yield made
        for one in made.values():
            one.stop()
        docker.close()


def access(hosts: dict[str, Host], addresses: list[str], known_hosts: str | None) -> ProductionHosts:
    first = hosts["both"]
    return ProductionHosts(
        prod_host=Secret(",".join(addresses)),
        prod_jump_host=None,
        prod_user=Secret(first.user),
        prod_key=Secret(first.key),
        prod_known_hosts=known_hosts,
        prod_accept_new_host_key=False,
        docker_username=None,
        docker_password=None,
    )


def found(tmp_path: Path, given: ProductionHosts) -> list[Finding]:
    images = {"edge_image": "r.example/edge@sha256:" + "0" * 64, "guard_image": "r.example/python@sha256:" + "0" * 64}
    target = {"kind": "docker_hosts", "docker_hosts": images}
    loaded = config.load(deploy_config.write(tmp_path / "d.toml", target=target, edge=None, registry={"repository": "r.example/azora"}))
    processes = Processes(JobLog(Actions(stream=io.StringIO()), Clock()))
    try:
        return doctor.findings(TargetContext(loaded, processes, Clock(), tmp_path, 10.0, access=given))
    finally:
        processes.end_all()


def test_every_host_is_examined_and_the_missing_line_named(hosts, tmp_path):
    stranger, nobody = hosts["neither"], f"127.0.0.1:{free_port()}"
    addresses = {kind: f"127.0.0.1:{one.port}" for kind, one in hosts.items()}
    called = {kind: f"host-{number}: " for number, kind in enumerate((*addresses, "nobody"), 1)}
    known = "".join(one.known_hosts for one in hosts.values() if one is not stranger)
    known += f"[127.0.0.1]:{stranger.port} " + hosts["both"].known_hosts.partition(" ")[2]  # another host's key
    findings = found(tmp_path, access(hosts, [*addresses.values(), nobody], known))

    def of(kind: str) -> dict[str, Finding]:
        name = called[kind]
        return {one.name.removeprefix(name): one for one in findings if one.name.startswith(name)}

    def failed(kind: str) -> list[str]:
        return [name for name, one in of(kind).items() if not one.passed]

    assert (findings[0].name, findings[0].detail) == ("hosts", "the others answer")
    assert [one.passed for name, one in of("both").items() if name in {"connection", "host key"}] == [True, True]
    assert of("both")["host key"].detail.endswith(", pinned")
    assert failed("both") == ["Docker"]  # what answers there is none

    assert failed("no_tcp") == ["AllowTcpForwarding"]
    assert "set AllowTcpForwarding yes" in of("no_tcp")["AllowTcpForwarding"].next_step

    assert failed("no_stream") == ["AllowStreamLocalForwarding"]
    step = of("no_stream")["AllowStreamLocalForwarding"].next_step
    assert "set AllowStreamLocalForwarding yes" in step
    assert "group docker" in step

    assert failed("neither") == failed("nobody") == ["connection"]
    assert "Host key does not match" in of("neither")["connection"].detail
    assert "cannot be reached" in of("nobody")["connection"].detail


def test_forwarding_that_is_disabled_altogether_is_named(hosts, tmp_path):
    one = hosts["neither"]
    findings = found(tmp_path, access(hosts, [f"127.0.0.1:{one.port}"], one.known_hosts))
    lacking = [finding.name.rpartition(" ")[2] for finding in findings if not finding.passed]
    assert lacking == ["AllowTcpForwarding"]
    assert "DisableForwarding" in next(finding.next_step for finding in findings if not finding.passed)


def test_access_that_is_not_set_is_named(hosts, tmp_path):
    with pytest.raises(BadInputError, match="No host key is pinned"):
        found(tmp_path, access(hosts, ["127.0.0.1"], None))


@pytest.mark.parametrize(
    ("told", "read"),
    [
        ("2026-11-24T14:25:43.200123456Z", "2026-11-24T14:25:43.200123Z"),
        ("2026-11-24T14:25:43.2+01:00", "2026-11-24T14:25:43.200000+01:00"),
        ("2026-11-24T14:25:43Z", "2026-11-24T14:25:43Z"),
    ],
)
def test_docker_tells_nanoseconds(told, read):
    assert doctor.to_microseconds(told) == read
