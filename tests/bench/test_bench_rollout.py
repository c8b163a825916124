from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from azora_ci.core.clock import rfc3339
from azora_ci.core.errors import BadInputError, NotTrueError
from tests.bench.rollout import command
from tests.bench.rollout import kills as rollout_kills
from tests.bench.rollout import scenes as rollout_scenes
from tests.bench.rollout.scenes import Size, furthest, share
from tests.bench.rollout.world import seconds_of_starts
from tests.support.waiting import until

BENCH = [sys.executable, "-m", "tests.bench", "rollout"]


@pytest.fixture(scope="module")
def measured() -> tuple[dict, str]:
    environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    completed = subprocess.run(
        [*BENCH, "--small", "--place", "local", "--json"], capture_output=True, text=True, timeout=240, env=environ, check=False
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    return json.loads(completed.stdout), completed.stderr


def test_the_local_scenes_are_measured_with_real_processes(measured):
    figures, _ = measured
    assert tuple(figures) == command.KEYS
    assert figures["failed"] == 0
    assert figures["requests"] >= 300
    assert 30 < figures["share_at_50"] < 70
    assert 0 < figures["share_at_5"] < 18
    assert 0 < figures["abort_seconds_one_host"] < 10
    assert 0 <= figures["tick_drift_ms"] < 2000
    assert 0 < figures["probe_cpu_share"] < 1
    assert 0 < figures["overhead_seconds"] < 60


def test_what_was_not_measured_is_null(measured):
    figures, _ = measured
    assert {key for key, value in figures.items() if value is None} == {
        "abort_seconds_fifty_hosts",  # of three stand-ins only
        *("kill_moments", "worst_recovery_seconds", "lease_seconds"),  # without hosts
    }


def test_what_happened_is_told_scene_by_scene(measured):
    _, log = measured
    lines = {line.split("] ", 1)[1].split(" took ")[0]: line for line in log.splitlines() if " took " in line}
    assert set(lines) == {f"{name} (local)" for name in ("load", "shares", "abort", "fifty", "probes", "overhead")}
    load = json.loads(lines["load (local)"].partition(": ")[2])
    assert len(load["versions"]) >= 3  # what served, and what climbed twice
    assert load["posts"] > 0
    assert load["answered"] == load["requests"] + load["posts"]
    assert load["in_flight"]["most"] >= load["in_flight"]["mean"] > 0
    fifty = json.loads(lines["fifty (local)"].partition(": ")[2])
    assert fifty["hosts"] == 3
    assert fifty["last_host_seconds"] > 2 * fifty["latency_seconds"]


def test_several_places_count_together_and_the_worse_figure_counts():
    results = command.Results(
        {
            "load (local)": {"requests": 10, "failed": 1, "share_at_5": 5.2, "overhead_seconds": 1.0},
            "load (docker)": {"requests": 20, "failed": 2, "share_at_5": 4.1, "overhead_seconds": 3.0},
        }
    )
    figures = results.document()
    assert (figures["requests"], figures["failed"], figures["share_at_5"], figures["overhead_seconds"]) == (30, 3, 4.1, 3.0)
    assert figures["kill_moments"] is None


def test_shares_are_of_all_answers():
    assert share([{"1.0.0": 90, "1.1.0": 10}, {"1.0.0": 100}], "1.1.0") == 5.0
    assert furthest([4.8, 5.5, 5.1], 5) == 5.5


def test_the_wait_for_instances_is_from_the_first_start_to_the_last_healthy_answer(tmp_path):
    zero = datetime(2026, 11, 24, 11, 0, tzinfo=UTC)

    def at(seconds: float) -> datetime:
        return zero + timedelta(seconds=seconds)

    log = tmp_path / "gradual-rollout.log"
    healthy = [(1.5, "web#1"), (1.5, "web#2"), (9.0, "web#1"), (9.0, "web#2"), (9.0, "web#3")]
    log.write_text("".join(f"{rfc3339(at(seconds))} ✓ {name} v1 (127.0.0.1:1) answers healthy, version 1\n" for seconds, name in healthy))
    assert seconds_of_starts(log, [at(0.5), at(0.6), at(8.0)]) == pytest.approx(2.0)
    assert seconds_of_starts(log, []) == 0


@pytest.mark.parametrize("change", ["nothing", "colour=1", "rate=fast"])
def test_a_change_that_changes_nothing_is_refused(change):
    with pytest.raises(BadInputError):
        command.size_of([change], small=False)


def test_what_is_measured_can_be_changed():
    assert command.size_of(["requests=5", "stage=0.5"], small=False) == Size(requests=5, stage=0.5)
    with pytest.raises(BadInputError):
        command.chosen(["nonsense"])
    assert command.chosen([]) == command.SCENES


def test_a_broken_scene_loses_neither_the_others_nor_what_it_found(tmp_path, monkeypatch, capsys):
    def breaks(folder, size):
        raise RuntimeError("nobody thought of this")

    scenes = {
        "load": command.Scene("folder", breaks),
        "fifty": command.Scene("folder", lambda _folder, _size: {"abort_seconds_fifty_hosts": 0.5}),
        "abort": command.Scene("folder", lambda _folder, _size: {"kill_moments": 3, "failures": ["killed at 3 s: it did not come back"]}),
    }
    monkeypatch.setattr(command, "_scenes_of", lambda _place: scenes)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as ended:
            command.run(("load", "fifty", "abort"), ("local",), Size(), as_json=True, output=tmp_path / "out.json")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ended.value.code == 1
    printed, progress = capsys.readouterr()
    figures = json.loads(printed)
    assert tuple(figures) == command.KEYS
    assert (figures["requests"], figures["abort_seconds_fifty_hosts"], figures["kill_moments"]) == (None, 0.5, 3)
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["figures"] == figures
    assert document["broken"]["load (local)"] == "RuntimeError: nobody thought of this"
    assert document["broken"]["abort (local)"] == "killed at 3 s: it did not come back"
    assert (document["held"]["abort_seconds_fifty_hosts"], document["held"]["kill_moments"], document["held"]["requests"]) == (
        True,
        False,
        None,
    )
    assert document["machine"]["cores"] == os.cpu_count()
    assert "fifty (local) begins; about" in progress


@pytest.fixture
def reachable() -> Iterator[Path]:
    """Provide a folder for temporary files that PostgreSQL's user may enter; the parents of ``tmp_path`` are closed to it."""
    folder = Path(tempfile.mkdtemp(prefix="bench"))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_bench_ends_all_that_it_has_started(reachable, number):
    environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "TMPDIR": str(reachable)}
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environ, "start_new_session": True}
    bench = subprocess.Popen([*BENCH, "--small", "--place", "local", "--scene", "load"], **options)
    try:

        def started() -> bool:
            assert bench.poll() is None
            names = Counter(_name(process) for process in _below(str(reachable)))
            return names["envoy"] == 1 and names["service.py"] >= 3

        until(started, "Envoy and instances run", 60)
        bench.send_signal(number)
        bench.send_signal(number)  # impatience changes nothing
        assert bench.wait(60) == 128 + number
        until(lambda: not _below(str(reachable)), "everything has ended", 10)
    finally:
        bench.kill()
    assert not list(reachable.glob("azora-bench-*"))


def _below(folder: str) -> list[psutil.Process]:
    """Return the processes that name a folder or work in it."""
    processes = []
    for process in psutil.process_iter():
        try:
            if folder in " ".join(process.cmdline()) or process.cwd().startswith(folder):
                processes.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return processes


def _name(process: psutil.Process) -> str:
    try:
        return "service.py" if "service.py" in process.cmdline() else process.name()
    except psutil.NoSuchProcess:
        return ""


def test_moments_of_kills_are_spread_over_every_phase():
    moments = rollout_kills.moments(27)
    counts = Counter(moment.phase.name for moment in moments)
    assert set(counts) == {"before the first weight", "5 %", "50 %", "100 %", "promoted"}
    assert min(counts.values()) >= 5
    assert len(set(moments)) == 27
    assert all(0 < moment.fraction < 1 for moment in moments)
    assert [moment.fraction for moment in moments if moment.phase.name == "100 %"] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9], abs=0.02)
    assert len(rollout_kills.moments(1)) == 1


def test_nothing_that_was_sent_is_left_out_of_the_account():
    counted = {"sent": {"GET": 10, "POST": 1}, "answered": {"GET": 7, "POST": 1}, "failed": {"GET": 2, "POST": 0}, "unanswered": 0}
    other_keys = dict.fromkeys(("kinds", "in_flight", "milliseconds", "lag_ms", "wanted_rate", "rate", "connections", "examples"))
    with pytest.raises(NotTrueError, match="unaccounted"):
        rollout_scenes.account(counted | other_keys)
    assert rollout_scenes.account(counted | other_keys | {"unanswered": 1})["answered"] == 8


@pytest.fixture
def faulty_port() -> Iterator[int]:
    """Start a server that answers, answers 503, closes and stays silent in turn, and give its port."""
    numbers = itertools.count()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"POST"):
                    await reader.readexactly(9)
                number = next(numbers) % 4
                if number == 2:
                    break
                if number != 3:
                    status, body = (b"200 OK", b'{"version": "1.0.0"}') if number == 0 else (b"503 Not now", b"no")
                    writer.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body))
        writer.close()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield server.sockets[0].getsockname()[1]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def test_the_client_tells_what_became_of_every_request(faulty_port):
    settings = {"addresses": [("127.0.0.1", faulty_port)], "rate": 200, "requests": 200, "post_every": 10, "timeout": 1.5}
    argv = [sys.executable, "-m", "tests.bench.rollout.client", json.dumps(settings)]
    completed = subprocess.run(argv, input="", capture_output=True, text=True, timeout=60, check=False)
    assert completed.returncode == 0, completed.stderr
    counts = json.loads(completed.stdout.splitlines()[-1])
    assert counts["sent"] == {"GET": 180, "POST": 20}
    kinds = Counter()
    for kind, number in counts["kinds"].items():
        kinds[kind.split(" ", 1)[1].split(":")[0]] += number
    assert kinds == {"HTTP 503": 50, "connection lost": 50, "no answer within 1.5 s": 50}
    assert sum(counts["answered"].values()) == counts["versions"][0]["1.0.0"] == 50
    assert sum(counts["failed"].values()) == 150
    assert counts["unanswered"] == 0
    assert counts["by_address"] == [{"sent": 200, "answered": 50, "failed": 150}]
    assert counts["milliseconds"]["p50"] >= counts["lag_ms"]["p50"]  # from the moment at which a request was due


def on_hosts(folder: Path, *words: str) -> dict:
    """Play scenes on real hosts and return the file that they leave; the bench ends its hosts itself, also when it takes too long."""
    output = folder / "out.json"
    argv = [*BENCH, "--small", "--place", "docker", *words, "--json", "--output", str(output)]
    bench = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        printed, progress = bench.communicate(timeout=540)
    finally:
        bench.terminate()
        bench.wait(60)
    assert bench.returncode == 0, progress[-3000:]
    document = json.loads(output.read_text())
    assert document["figures"] == json.loads(printed)
    return document


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_requests_to_real_hosts_are_counted_beside_those_of_docker_compose(tmp_path):
    scenes = [word for name in ("load", "shares", "compose") for word in ("--scene", name)]
    document = on_hosts(tmp_path, *scenes, "--set", "requests=2000", "--set", "rate=100")
    assert document["figures"]["failed"] == 0
    load, shares, compose = (document["scenes"][f"{name} (docker)"] for name in ("load", "shares", "compose"))
    assert (load["killed_at_each_stage"], load["unanswered"]) == ("goes on", 0)
    assert [host["failed"] for host in shares["share_at_50_requests_on_3"]["by_host"]] == [0, 0, 0]
    assert compose["compose_failed"] > 0  # it stops before it starts
    installed = shutil.which("docker-compose") is not None
    assert compose["compose"].endswith("over SSH") if installed else compose["compose"].startswith("emulated")


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_runner_is_killed_in_every_phase_on_a_real_host(tmp_path):
    document = on_hosts(tmp_path, "--scene", "kills", "--set", "moments=5")
    figures, kills = document["figures"], document["scenes"]["kills (docker)"]
    assert figures["kill_moments"] == 5
    assert figures["worst_recovery_seconds"] <= figures["lease_seconds"] + 5
    assert {moment["planned"] for moment in kills["moments"]} == {phase.name for phase in rollout_kills.PHASES}
    assert {moment["traffic"] for moment in kills["moments"]} == {"old", "new"}
    assert kills["kill_requests_failed"]["GET"] == 0
