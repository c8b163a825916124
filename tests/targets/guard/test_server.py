"""The guard: real processes, real kills. A dead runner leaves the old routes, a late one is refused."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from azora_ci.cli.lock import _held_text
from azora_ci.core.clock import Clock
from azora_ci.health.probes import DialledConnection, unix_dial
from azora_ci.targets.docker_hosts import edge_containers
from azora_ci.targets.guard import server
from azora_ci.targets.guard.client import GuardClient
from azora_ci.targets.guard.lease import Guard, RefusedError
from tests.support import ROOT

ME = {"owner": "alice", "run_url": "https://github.example/runs/1", "deployment_id": "1-aaaaaa"}
OTHER = {"owner": "bob", "run_url": "https://github.example/runs/2", "deployment_id": "2-bbbbbb"}


class Served:
    """A guard in a process of its own."""

    def __init__(self, folder: Path, lease: float) -> None:
        self.folder, self.lease, self.socket = folder, lease, Path(tempfile.mkdtemp(prefix="gs")) / "s"  # short, as paths of sockets are
        self.start()

    def start(self) -> None:
        argv = [
            sys.executable,
            "-m",
            server.__name__,
            "--folder",
            self.folder,
            "--socket",
            self.socket,
            "--lease-seconds",
            str(self.lease),
        ]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environ)
        assert "listens on" in self.process.stdout.readline()

    def ask(self, path: str, document: Any = None) -> tuple[int, Any]:
        connection = DialledConnection("guard", None, 30, unix_dial(self.socket))
        body = document if isinstance(document, bytes) else None if document is None else json.dumps(document)
        connection.request("GET" if document is None else "POST", path, body)
        answer = connection.getresponse()
        result = answer.status, json.loads(answer.read())
        connection.close()
        return result

    def served_route(self) -> str:
        return (self.folder / "current" / "routes.json").read_text()

    def stop(self, number: int = signal.SIGTERM) -> None:
        os.kill(self.process.pid, number)
        self.process.wait(30)
        self.process.stdout.close()


@pytest.fixture
def served(tmp_path):
    guard = Served(tmp_path / "edge", lease=2.0)
    yield guard
    if guard.process.poll() is None:
        guard.stop()


def until(condition, seconds: float = 30) -> float:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "waited too long"
        time.sleep(0.02)
    return time.monotonic() - started


def deploy_old(served) -> None:
    token = served.ask("/lock", ME)[1]["token"]
    assert served.ask("/apply", {"token": token, "generation": "old", "files": {"routes.json": "old"}})[0] == 200
    served.ask("/promote", {"token": token})
    served.ask("/unlock", {"token": token, "reason": "done"})


def hold_new(served, who=ME) -> str:
    status, answer = served.ask("/lock", who)
    assert status == 200, answer
    token = answer["token"]
    status, answer = served.ask("/apply", {"token": token, "generation": "new", "files": {"routes.json": "new"}, "hold": True})
    assert status == 200, answer
    assert served.served_route() == "new"
    return token


def other_token(token: str) -> str:
    """Return a token that differs in its last digit."""
    return token[:-1] + ("0" if token[-1] != "0" else "1")


def test_a_dead_runner_leaves_the_old_routes_and_comes_back_too_late(served):
    deploy_old(served)
    token = hold_new(served)
    took = until(lambda: served.served_route() == "old")
    assert took >= 1.0
    for action in ("renew", "promote", "apply"):
        status, answer = served.ask(f"/{action}", {"token": token, "generation": "x", "files": {}})
        assert status == 409
        assert "superseded" in answer["error"]
    entries = [entry["entry"] for entry in served.ask("/status")[1]["journal"]]
    assert entries[-2:] == ["return", "fence"]


def test_renewing_keeps_the_new_routes(served):
    deploy_old(served)
    token = hold_new(served)
    started = time.monotonic()
    while time.monotonic() - started < 4:
        assert served.ask("/renew", {"token": token})[0] == 200
        assert served.served_route() == "new"
        time.sleep(0.1)


def test_after_promotion_a_dead_runner_leaves_the_new_version(served):
    deploy_old(served)
    token = hold_new(served)
    assert served.ask("/promote", {"token": token})[0] == 200
    time.sleep(3)
    assert served.served_route() == "new"
    assert served.ask("/status")[1]["held"] is False


@pytest.mark.parametrize("promoted", [False, True])
def test_a_killed_guard_knows_what_it_was_doing(served, promoted):
    deploy_old(served)
    token = hold_new(served)
    if promoted:
        served.ask("/promote", {"token": token})
    served.stop(signal.SIGKILL)
    served.start()
    if promoted:
        time.sleep(3)
        assert served.served_route() == "new"
        assert served.ask("/renew", {"token": token})[0] == 200
    else:
        until(lambda: served.served_route() == "old")


def test_a_half_written_journal_entry_is_dropped(served):
    deploy_old(served)
    hold_new(served)
    served.stop(signal.SIGKILL)
    with (served.folder / "journal.jsonl").open("a") as file:
        file.write('{"sequence": 99, "entry": "prom')
    served.start()
    until(lambda: served.served_route() == "old")
    assert all(json.loads(line) for line in (served.folder / "journal.jsonl").read_text().splitlines())


def test_killed_between_journal_and_rename_it_still_returns(served):
    deploy_old(served)
    hold_new(served)
    served.stop(signal.SIGKILL)
    with (served.folder / "journal.jsonl").open("a") as file:
        file.write(
            json.dumps({"sequence": 99, "at": "x", "entry": "return", "generation": "old", "previous": "new", "reason": "asked for"}) + "\n"
        )
    assert served.served_route() == "new"
    served.start()
    assert served.served_route() == "old"


def test_a_guard_that_starts_again_keeps_what_was_promoted_after_a_return(served):
    deploy_old(served)
    token = hold_new(served)
    served.ask("/abort", {"token": token, "reason": "5xx"})
    for action, more in (("apply", {"generation": "newer", "files": {"routes.json": "newer"}, "hold": True}), ("promote", {})):
        assert served.ask(f"/{action}", {"token": token, **more})[0] == 200
    served.stop(signal.SIGKILL)
    served.start()
    assert served.served_route() == "newer"


def test_one_deployment_at_a_time_and_the_holder_is_named(served):
    deploy_old(served)
    hold_new(served)
    status, answer = served.ask("/lock", OTHER)
    assert status == 409
    assert "alice" in answer["error"]
    assert ME["run_url"] in answer["error"]
    assert served.served_route() == "new"


def test_a_lock_left_by_a_dead_owner_is_taken_over_after_expiry(served):
    token = served.ask("/lock", ME)[1]["token"]
    assert served.ask("/lock", OTHER)[0] == 409
    until(lambda: served.ask("/lock", OTHER)[0] == 200)
    assert served.ask("/renew", {"token": token})[0] == 409


def test_the_holder_of_a_lock_is_alive_while_it_renews_it(served):
    guard = GuardClient("host-1", unix_dial(served.socket), Clock(), int)
    token = served.ask("/lock", ME)[1]["token"]
    assert guard.holder().alive
    assert "its owner  has renewed it 0 s ago" in _held_text(guard.holder())
    until(lambda: not guard.holder().alive)
    assert re.search(r"its owner  has been silent for [1-4] s", _held_text(guard.holder()))
    assert served.ask("/renew", {"token": token})[0] == 200
    assert guard.holder().alive


def test_a_rollback_fences_a_running_deployment_and_stands_on_old_ground(served):
    deploy_old(served)
    token = hold_new(served)
    assert served.ask("/lock", {**OTHER, "fence": True})[0] == 409  # no reason given
    assert served.ask("/lock", {**OTHER, "fence": True, "reason": "errors at checkout"})[0] == 200
    assert served.served_route() == "old"
    assert served.ask("/promote", {"token": token})[0] == 409


def test_a_rerun_of_the_same_deployment_takes_over_and_fences_its_first_run(served):
    deploy_old(served)
    token = hold_new(served)
    second = served.ask("/lock", ME)[1]["token"]
    assert served.served_route() == "old"
    assert served.ask("/renew", {"token": token})[0] == 409
    assert served.ask("/renew", {"token": second})[0] == 200


def test_a_rerun_does_not_take_the_lock_of_the_rollback_of_its_own_deployment(served):
    deploy_old(served)
    hold_new(served)
    back = served.ask("/lock", {**ME, "owner": "carol", "fence": True, "reason": "errors at checkout"})[1]["token"]
    for _ in range(2):
        status, answer = served.ask("/lock", ME)
        assert (status, "locked by carol" in answer["error"]) == (409, True)
        assert served.ask("/renew", {"token": back})[0] == 200
        served.stop(signal.SIGKILL)  # and one that was killed has not forgotten it
        served.start()
    by_hand = served.ask("/lock", {**ME, "owner": "dave", "fence": True, "reason": "its runner is gone"})[1]["token"]
    assert served.ask("/unlock", {"token": by_hand, "reason": "its runner is gone"})[0] == 200
    assert served.ask("/lock", ME)[0] == 200


def test_abort_and_unlock_put_the_old_routes_back(served):
    deploy_old(served)
    token = hold_new(served)
    assert served.ask("/abort", {"token": token, "reason": "5xx"})[1]["generation"] == "old"
    assert served.served_route() == "old"
    assert served.ask("/apply", {"token": token, "generation": "new", "files": {"routes.json": "new"}, "hold": True})[0] == 200
    assert served.ask("/unlock", {"token": token, "reason": "gave up"})[0] == 200
    assert served.served_route() == "old"


def test_events_of_runners_are_kept_in_order(served):
    deploy_old(served)
    token = hold_new(served)
    served.ask("/note", {"token": token, "event": {"event": "stage", "percent": 5}})
    served.ask("/promote", {"token": token, "event": {"event": "promote"}})
    served.stop(signal.SIGKILL)
    served.start()
    assert served.ask("/journal") == (200, [{"event": "stage", "percent": 5}, {"event": "promote"}])
    assert served.ask("/files") == (200, {"routes.json": "new"})
    assert served.ask("/note", {"token": other_token(token), "event": {}})[0] == 409


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/apply", {"generation": "../x", "files": {}}, 409),
        ("/apply", {"generation": "x", "files": {"../y": "z"}}, 409),
        ("/apply", {"generation": "old", "files": {"routes.json": "other"}}, 409),
        ("/apply", {}, 400),
        ("/lock", [], 400),
        ("/apply", {"generation": "x", "files": {"routes.json": 1}}, 400),
        ("/apply", {"generation": "x", "files": ["routes.json"]}, 400),
        ("/nothing", {}, 404),
    ],
)
def test_bad_requests_change_nothing(served, path, body, status):
    deploy_old(served)
    token = served.ask("/lock", ME)[1]["token"]
    request = {**body, "token": token} if isinstance(body, dict) else body
    assert served.ask(path, request)[0] == status
    assert served.served_route() == "old"
    assert sorted(path.name for path in (served.folder / "generations").iterdir()) == ["old"]


@pytest.mark.parametrize("state", ["held", "unlocked", "expired", "superseded"])
def test_a_token_is_refused_that_was_guessed_or_whose_time_is_over(served, state):
    deploy_old(served)
    token = served.ask("/lock", ME)[1]["token"]
    guesses: list[Any] = [None, True, 0, 1, 2, 3, "", "1", "2", "0" * 32, token.upper() + "x", other_token(token), token[:-1], [token]]
    if state == "unlocked":
        assert served.ask("/unlock", {"token": token, "reason": "done"})[0] == 200
    elif state == "expired":
        until(lambda: served.ask("/status")[1]["lock"] is None)
    elif state == "superseded":
        assert served.ask("/lock", {**OTHER, "fence": True, "reason": "errors at checkout"})[0] == 200
    if state != "held":
        guesses.append(token)  # and replayed
    before = served.ask("/journal")
    for guess in guesses:
        for action in ("renew", "apply", "note", "promote", "abort", "unlock"):
            request = {"token": guess, "generation": "x", "files": {"routes.json": "x"}, "event": {"event": "x"}}
            status, answer = served.ask(f"/{action}", request)
            assert (status, "superseded" in answer["error"]) == (409, True), (action, guess)
    assert (served.served_route(), served.ask("/journal")) == ("old", before)
    assert state != "held" or served.ask("/renew", {"token": token})[0] == 200


def test_tokens_are_128_random_bits_that_nobody_else_is_told(served):
    deploy_old(served)
    tokens = [hold_new(served), served.ask("/lock", ME)[1]["token"], served.ask("/lock", ME)[1]["token"]]
    assert all(re.fullmatch("[0-9a-f]{32}", token) for token in tokens)
    assert len(set(tokens)) == 3
    answers = json.dumps([served.ask(path) for path in ("/status", "/journal", "/files")])
    refused = served.ask("/renew", {"token": tokens[0]})[1]["error"]
    kept = "".join(str(path) + path.read_text() for path in served.folder.rglob("*") if path.is_file())
    assert not [token for token in tokens if token in answers + refused + kept]
    served.stop(signal.SIGKILL)
    served.start()
    assert [served.ask("/renew", {"token": token})[0] for token in tokens] == [409, 409, 200]  # it knows them nevertheless


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e300", "1e999", "-1e300", "1" + "0" * 5000, "1" + "0" * 400, "2e15"])
def test_numbers_without_bounds_are_refused(served, number):
    token = served.ask("/lock", ME)[1]["token"]
    lock = json.dumps({**OTHER, "fence": True, "reason": "r"})[:-1]
    for path, body in (
        ("/lock", f'{lock}, "seconds": {number}}}'),
        ("/note", f'{{"token": "{token}", "event": {{"event": "stage", "percent": {number}}}}}'),
        ("/apply", f'{{"token": "{token}", "generation": "x", "files": {{}}, "hold": {number}}}'),
    ):
        assert served.ask(path, body.encode())[0] == 400
    status = served.ask("/status")[1]
    assert (status["lock"]["owner"], status["generation"]) == ("alice", None)


def test_nobody_chooses_how_long_a_lock_is_held(served):
    for seconds in (1e9, 0, -1, "1e300", None):
        assert served.ask("/lock", {**ME, "fence": True, "reason": "r", "seconds": seconds})[0] == 200
        assert 0 < served.ask("/status")[1]["lock_seconds"] <= 2 * served.lease


@pytest.mark.parametrize(
    ("length", "body", "status"),
    [
        ("-1", b"{}", 404),
        (None, b"", 404),
        ("1e9", b"{}", 404),
        (str(1 << 40), b"{}", 404),
        (None, b"[" * 100_000, 400),
        (None, b'{"a":' * 100_000, 400),
        (None, b"\xff", 400),
        (None, b"{} {}", 400),
    ],
)
def test_bodies_without_bounds_are_refused(served, length, body, status):
    connection = DialledConnection("guard", None, 10, unix_dial(served.socket))
    connection.putrequest("POST", "/lock")
    if body and status == 400:
        length = str(len(body))
    if length is not None:
        connection.putheader("Content-Length", length)
    connection.endheaders(body)
    assert connection.getresponse().status == status
    connection.close()
    assert served.ask("/status")[1]["lock"] is None


@pytest.mark.parametrize("option", ["1e300", "nan", "inf", "0", "-1"])
def test_a_lease_without_bounds_is_refused(tmp_path, option):
    argv = [sys.executable, "-m", server.__name__, "--folder", tmp_path, "--socket", tmp_path / "s", f"--lease-seconds={option}"]
    completed = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert completed.returncode == 2
    assert "--lease-seconds: 0.1 to 3600" in completed.stderr


def test_the_socket_is_for_its_group_and_its_folder_for_nobody_else(served):
    assert served.socket.stat().st_mode & 0o777 == 0o660
    for mode in (0o777, 0o770, 0o1777):
        served.stop()
        served.socket.parent.chmod(mode)
        with pytest.raises(AssertionError):  # it prints no line, because it does not start
            served.start()
    assert served.process.wait(30) != 0
    served.socket.parent.chmod(0o755)
    served.start()


class Machine(RuleBasedStateMachine):
    """Any order of requests and any passing of time: traffic is on an unpromoted version only while a lease is held."""

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.time = 0.0
        self.guard = Guard(Path(self.temporary.name), lease_seconds=10, monotonic=lambda: self.time)
        self.number = 0
        self.promoted = None
        self.tokens = ["0" * 32]
        token = self.guard.lock(ME)["token"]
        self.guard.apply({"token": token, "generation": "g0", "files": {}})
        self.guard.promote({"token": token})
        self.promoted = "g0"
        self.tokens.append(token)

    def teardown(self) -> None:
        self.temporary.cleanup()

    def attempt(self, action, request):
        try:
            return action(request)
        except RefusedError:
            return None

    @rule(seconds=st.floats(0.1, 30))
    def time_passes(self, seconds):
        self.time += seconds
        self.guard.check()

    @rule(who=st.sampled_from([ME, OTHER]), fence=st.booleans())
    def lock(self, who, fence):
        answer = self.attempt(self.guard.lock, {**who, "fence": fence, "reason": "r"})
        if answer:
            self.tokens.append(answer["token"])

    @rule(data=st.data(), action=st.sampled_from(["renew", "apply", "promote", "abort", "unlock"]))
    def act(self, data, action):
        token = data.draw(st.sampled_from(self.tokens))
        latest = token == self.tokens[-1]
        self.number += 1
        request = {"token": token, "generation": f"g{self.number}", "files": {}, "hold": True}
        answer = self.attempt(getattr(self.guard, action), request)
        assert answer is None or latest, "an old token was obeyed"
        if answer is not None and action == "promote":
            self.promoted = self.guard.current()

    @rule()
    def killed(self):
        self.guard = Guard(Path(self.temporary.name), lease_seconds=10, monotonic=lambda: self.time)

    @invariant()
    def unpromoted_only_while_held(self):
        status = self.guard.status()
        assert status["generation"] == self.promoted or (status["held"] and status["lock"] and status["lease_seconds"] > 0)


Machine.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=30, deadline=None)
TestGuardMachine = Machine.TestCase


def test_what_runs_in_the_container_imports_the_standard_library_and_itself_only():
    """They run in a container of their own, as a package ``guard`` without any other file of ours."""
    for name in ("lease", "server", "store"):
        tree = ast.parse(Path(server.__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module in {"lease", "store"}, ast.unparse(node)
            elif isinstance(node, ast.ImportFrom | ast.Import):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names, ast.unparse(node)


def test_the_files_that_are_copied_into_the_container_start_there(tmp_path):
    for name, text in edge_containers.guard_sources().items():
        path = tmp_path / "azora" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    started = subprocess.run(
        [sys.executable, "-I", tmp_path / "azora", "--help"], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert (started.returncode, started.stderr) == (0, "")
    assert "the only writer of its routes" in started.stdout
