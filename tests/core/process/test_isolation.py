"""Isolated commands: what they get, what they see, and that nothing of them goes on when they have ended."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import BadInputError, NotTrueError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import CommandFailedError, Processes, init, isolation
from azora_ci.core.process.isolation import Door, Isolation, Window, require_start
from azora_ci.health.probes import ProbeRequest, fetch, unix_dial
from tests.support import ROOT
from tests.support.waiting import until

UNSHARE = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc", "--ipc", "--")
INIT = ("-I", "-S", "-B", str(ROOT / "azora_ci" / "core" / "process" / "init.py"))
possible = pytest.mark.skipif(
    sys.platform != "linux" or (os.geteuid() != 0 and subprocess.run(["sudo", "-n", "true"], check=False).returncode != 0),
    reason="namespaces need Linux, and root or sudo",
)
as_root = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="becomes another user")


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def processes(tmp_path: Path, stream: io.StringIO) -> Iterator[Processes]:
    children = Processes(JobLog(Actions(stream=stream, github=True), Clock(), tmp_path / "job.log"))
    yield children
    children.end_all()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "file").write_text("of the application", encoding="utf-8")
    for parent in (folder, *folder.parents[:-2]):
        parent.chmod(0o755)
    return folder


# --- what is decided ---------------------------------------------------------------------------------------------------------


def test_the_command_line_names_no_command_and_no_secret() -> None:
    assert isolation.argv(root=True, python="/p") == (*UNSHARE, "/p", *INIT)
    assert isolation.argv(root=False, python="/p") == ("sudo", "-n", "--", *UNSHARE, "/p", *INIT)
    assert isolation.argv(root=True, network=False, python="/p") == (*UNSHARE[:-1], "--net", "--", "/p", *INIT)


def test_the_user_is_dropped_to_without_groups_capabilities_or_a_way_back() -> None:
    argv = init.drop(5, ["npx", "prisma"])
    assert Path(argv[0]).name == "setpriv"
    assert argv[1:] == (
        "--reuid=5", "--regid=5", "--clear-groups", "--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all",
        "--", "npx", "prisma",
    )  # fmt: skip


def test_the_environment_is_what_is_allowed_and_what_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    allowed = {"PATH": "/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC", "CI": "true", "NODE_ENV": "production"}
    kept_back = (
        "PROD_KEY",
        "GITHUB_TOKEN",
        "NODE_AUTH_TOKEN",
        "npm_config_token",
        "HTTPS_PROXY",
        "RUNNER_TEMP",
        "GITHUB_ENV",
        "STRIPE_KEY",
    )
    for name, value in {**allowed, **dict.fromkeys(kept_back, "secret"), "HOME": "/h"}.items():
        monkeypatch.setenv(name, value)
    here = Isolation(tmp_path, tmp_path)
    assert here.environment({"DATABASE_URL": "x"}) == {**allowed, "DATABASE_URL": "x"}
    assert json.loads(here.document(["a"], None))["environment"] == allowed
    assert Isolation(tmp_path, tmp_path, active=False).environment(None) == {**allowed, "HOME": "/h"}


def test_a_user_id_that_nobody_has() -> None:
    assert init.free_uid("root:x:0:0::/root:/bin/sh\n") == init.FIRST_UID
    assert init.free_uid(f"a:x:{init.FIRST_UID}:1::/:/bin/sh\n# b\nb:x:{init.FIRST_UID + 1}:1::/:/\n") == init.FIRST_UID + 2


@pytest.mark.parametrize(("kind", "reason", "expected"), [("namespaces", None, True), ("none", "a laptop", False)])
def test_isolation_is_left_out_for_a_reason_only(kind: str, reason: str | None, expected: bool) -> None:
    assert isolation.is_chosen(kind, reason) is expected
    with pytest.raises(BadInputError, match="needs a reason"):
        isolation.is_chosen("none", "")


# --- what the command is and sees ---------------------------------------------------------------------------------------------


def run(processes: Processes, work: Path, script: str, **options: object) -> str:
    """Run a shell script isolated in ``work`` and return what it printed."""
    arguments = {name: options.pop(name) for name in ("env", "timeout", "check") if name in options}
    return processes.run_isolated(["sh", "-c", script], Isolation(work, work, **options), **arguments).stdout  # type: ignore[arg-type]


@possible
def test_a_user_without_any_right(processes: Processes, work: Path) -> None:
    printed = run(
        processes, work, "id -u; id -G; grep -E 'Cap(Prm|Eff|Bnd|Amb)|NoNewPrivs' /proc/self/status; sudo -n true || echo no sudo"
    )
    uid, groups, *status, last = printed.split("\n")[:-1]
    assert int(uid) >= init.FIRST_UID
    assert groups == uid
    assert [line.split("\t")[1] for line in status] == ["0" * 16] * 4 + ["1"]
    assert last == "no sudo"


@possible
def test_programs_find_their_user_and_a_home_to_write_to(processes: Processes, work: Path) -> None:
    node = shutil.which("node", path=f"{os.environ['PATH']}:/usr/bin")
    script = "echo x > ~/a && mktemp >/dev/null && echo said > /dev/stdout && echo $HOME $USER"
    if node is not None:
        script += f"; {os.path.realpath(node)} -e 'const u = os.userInfo(); console.log(u.username, u.homedir === os.homedir())'"
    lines = run(processes, work, script).splitlines()
    assert lines[:2] == ["said", "/home/isolated isolated"]
    assert lines[2:] in ([], ["isolated true"])


@possible
def test_only_its_own_processes_are_there(processes: Processes, work: Path) -> None:
    printed = run(processes, work, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; echo; cat /proc/1/environ || echo unreadable")
    assert str(os.getpid()) not in run(processes, work, "ls /proc").split()
    assert "pytest" not in printed
    assert "init.py" in printed
    assert printed.endswith("unreadable\n")


@possible
def test_what_is_hidden_and_what_is_read_only(processes: Processes, work: Path, tmp_path: Path) -> None:
    temp = tmp_path / "temp"
    commands = temp / "_runner_file_commands"
    commands.mkdir(parents=True)
    (commands / "set_env_1").touch(mode=0o666)
    toolchain = tmp_path / "toolchain"
    toolchain.mkdir()
    (toolchain / "program").write_text("program", encoding="utf-8")
    toolchain.chmod(0o777)  # as GitHub's tool cache
    logs = work / "deployment-logs"
    logs.mkdir()
    (logs / "log").write_text("log", encoding="utf-8")
    secret = Path.home() / f".azora-ci-test-{os.getpid()}"
    secret.write_text("secret", encoding="utf-8")
    try:
        script = (
            f"cat {commands}/set_env_1 {logs}/log {secret}; ls -A {tmp_path} {logs} /home /root /run /dev/shm; echo x > {commands}/new;"
            f" touch /usr/local/x /opt/x /var/x {toolchain}/x {work}/x;"
            f" for s in /run/docker.sock /var/run/docker.sock; do test -S $s && echo socket; done;"
            f" cat file {toolchain}/program"
        )
        printed = run(processes, work, script, hidden=(temp, logs), shown=(toolchain,))
    finally:
        secret.unlink()
    listed = set(printed.replace(":", "").split())
    assert listed == {str(tmp_path), "toolchain", "work", str(logs), "/home", "isolated", "/root", "/run", "passwd", "group",
                      "/dev/shm", "of", "the", "applicationprogram"}  # fmt: skip
    assert sorted(path.name for path in work.iterdir()) == ["deployment-logs", "file"]
    assert sorted(commands.iterdir()) == [commands / "set_env_1"]
    assert sorted(toolchain.iterdir()) == [toolchain / "program"]


@possible
def test_a_tree_of_its_own_may_be_changed_and_appears_under_another_name(processes: Processes, work: Path, tmp_path: Path) -> None:
    target = tmp_path / "workspace"
    target.mkdir()
    (target / "of-the-checkout").touch()
    (work / "elsewhere").symlink_to(target / "of-the-checkout")
    here = Isolation(work, target, owned=True)
    completed = processes.run_isolated(["sh", "-c", "pwd; ls; echo more >> file; echo new > new"], here)
    assert completed.stdout.split() == [str(target), "elsewhere", "file"]
    assert (work / "file").read_text(encoding="utf-8") == "of the applicationmore\n"
    assert (work / "new").exists()
    assert (target / "of-the-checkout").stat().st_uid == os.geteuid()


def test_a_metadata_address_that_cannot_be_kept_from_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ip").write_text('#!/bin/sh\n[ "$3" = show ] || { echo "Operation not permitted" >&2; exit 2; }\n')
    (tmp_path / "ip").chmod(0o755)
    monkeypatch.setattr(init, "TOOLS", str(tmp_path))
    init.block_metadata(init.FIRST_UID)
    assert capsys.readouterr().err == "169.254.169.254 is not kept from this command: Operation not permitted\n"


# --- that nothing of it goes on -------------------------------------------------------------------------------------------------

DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for descriptor in (0, 1, 2):
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for beat in range(6000):
            with open("beats", "a") as file:
                file.write(f"{beat}\\n")
            time.sleep(0.02)
    os._exit(0)
while not os.path.exists("beats"):
    time.sleep(0.01)
"""


def beats(work: Path) -> int:
    return len((work / "beats").read_text(encoding="utf-8").splitlines())


@possible
def test_a_daemon_is_dead_before_the_step_goes_on(processes: Processes, work: Path) -> None:
    processes.run_isolated(["/usr/bin/python3", "-c", DAEMON], Isolation(work, work, owned=True))
    counted = beats(work)
    time.sleep(0.3)
    assert counted == beats(work) > 0


@possible
@pytest.mark.parametrize("way", ["timeout", "end_all"])
def test_ending_takes_under_seven_seconds_whatever_the_command_ignores(processes: Processes, work: Path, way: str) -> None:
    stubborn = DAEMON + "\nimport signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nopen('ready', 'w')\ntime.sleep(600)\n"
    failures: list[BaseException] = []

    def run_it() -> None:
        try:
            processes.run_isolated(
                ["/usr/bin/python3", "-c", stubborn], Isolation(work, work, owned=True), timeout=3 if way == "timeout" else 100
            )
        except NotTrueError as error:
            failures.append(error)

    runner = threading.Thread(target=run_it)
    runner.start()
    until((work / "ready").exists, "the command", 30)
    began = time.monotonic()
    if way == "end_all":
        processes.end_all()
    runner.join(30)
    assert time.monotonic() - began < (7 + 3 if way == "timeout" else 7)
    assert len(failures) == 1
    counted = beats(work)
    time.sleep(0.3)
    assert counted == beats(work)


@possible
def test_a_command_may_clean_up_when_it_is_ended(processes: Processes, work: Path) -> None:
    script = "trap 'echo cleaned > cleaned; exit 3' TERM; touch ready; while :; do sleep 0.1; done"
    here = Isolation(work, work, owned=True)
    runner = threading.Thread(target=lambda: processes.run_isolated(["sh", "-c", script], here, check=False))
    runner.start()
    until((work / "ready").exists, "the command", 30)
    processes.end_all()
    runner.join(30)
    assert (work / "cleaned").exists()


@possible
def test_a_killed_step_takes_its_command_along(work: Path, tmp_path: Path) -> None:
    step = (
        "import sys; from pathlib import Path; from azora_ci.core.actions import Actions; from azora_ci.core.clock import Clock;"
        "from azora_ci.core.job_log import JobLog; from azora_ci.core.process import Processes;"
        "from azora_ci.core.process.isolation import Isolation; w = Path(sys.argv[1]);"
        "Processes(JobLog(Actions(), Clock())).run_isolated(['/usr/bin/python3', '-c', sys.argv[2]], Isolation(w, w, owned=True))"
    )
    argv = [sys.executable, "-c", step, str(work), DAEMON + "\ntime.sleep(600)"]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until((work / "beats").exists, "the daemon", 30)
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 7
    counted = -1
    while counted != beats(work):
        assert time.monotonic() < deadline
        counted = beats(work)
        time.sleep(0.3)


# --- with a door, and nothing else to reach -----------------------------------------------------------------------------------------


@pytest.fixture
def echo(work: Path) -> Iterator[Path]:
    """Yield a Unix socket in a folder that only we may enter, which answers each line with itself; ``outside`` beside it on TCP."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{folder}/s")
        server.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    with client:
                        client.sendall(client.recv(100))

        threading.Thread(target=serve, daemon=True).start()
        yield Path(folder) / "s"


TALK = """import socket, sys
for port in map(int, sys.argv[1:]):
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as talk:
            talk.sendall(b"hello")
            print(talk.recv(100).decode())
    except OSError as error:
        print(type(error).__name__)
print(open("/proc/net/dev").read().count(":"))
"""


@possible
def test_only_the_door_is_reached(processes: Processes, work: Path, echo: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as outside:
        here = Isolation(work, work, door=Door(echo, 5432))
        argv = ["/usr/bin/python3", "-c", TALK, "5432", str(outside.getsockname()[1]), "5432"]
        assert processes.run_isolated(argv, here).stdout.split() == ["hello", "ConnectionRefusedError", "hello", "1"]
        kill = "kill -9 -1; for p in /proc/[0-9]*; do cat $p/environ 2>/dev/null && ls $p/fd; done; ls -A /tmp"
        processes.run_isolated(["sh", "-c", kill], here, check=False)
        assert processes.run_isolated(["/usr/bin/python3", "-c", TALK, "5432"], here).stdout.split()[0] == "hello"


ANSWER = """import http.server, socket, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with socket.create_connection(("127.0.0.1", 5432), 5) as talk:
            talk.sendall(self.path.encode())
            body = talk.recv(100)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", 8080), Handler).serve_forever()
"""


@possible
def test_a_window_leads_to_a_command_that_runs_on(processes: Processes, work: Path, echo: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        window = Window(Path(folder) / "w", 8080)
        here = Isolation(work, work, door=Door(echo, 5432), window=window)
        child = processes.start_isolated(["/usr/bin/python3", "-c", ANSWER], here, withheld=True)
        request = ProbeRequest("http://service/from-within", dial=unix_dial(window.socket))
        until(lambda: fetch(request, 5, Clock()).body == b"/from-within", "the command answers", 20)
        child.end()
        assert child.poll() is not None
        assert fetch(request, 5, Clock()).failure == "refused"


@possible
def test_a_window_that_cannot_be_made_is_an_error(processes: Processes, work: Path, echo: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "w").touch()
        here = Isolation(work, work, door=Door(echo, 5432), window=Window(Path(folder) / "w", 8080))
        child = processes.start_isolated(["sleep", "60"], here, withheld=True)
        with pytest.raises(BadInputError, match="cannot be isolated") as caught:
            require_start(child.wait(20), child.stderr_text)
    assert "Address already in use" in caught.value.what


SLOW = """import os, signal, sys, time
from pathlib import Path
from azora_ci.core.process import init
listen, fork = init.listen_unix, os.fork
relays = []
os.fork = lambda: relays.append(fork()) or relays[-1]
init.listen_unix = lambda name: time.sleep(0.5) or listen(name)
init.open_window(Path(sys.argv[1]), 8080)
print(Path(sys.argv[1]).exists(), flush=True)
os.kill(relays[0], signal.SIGKILL)
"""


def test_a_window_is_open_before_mounts_are_made_read_only(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", SLOW, str(tmp_path / "w")]
    assert subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True).stdout == "True\n"


@possible
def test_what_is_withheld_is_returned_and_nowhere_else(processes: Processes, work: Path, tmp_path: Path, stream: io.StringIO) -> None:
    for active in (True, False):
        here = Isolation(work, work, active=active)
        completed = processes.run_isolated(["sh", "-c", "echo a$((40 + 2))z; echo b$((40 + 2))z >&2"], here, withheld=True)
        assert (completed.stdout, completed.stderr) == ("a42z\n", "b42z\n")
    assert "42z" not in stream.getvalue() + (tmp_path / "job.log").read_text(encoding="utf-8")


# --- what comes back, and what is refused ---------------------------------------------------------------------------------------


@possible
def test_output_is_masked_and_logged_and_the_exit_code_is_the_commands(
    processes: Processes, work: Path, tmp_path: Path, stream: io.StringIO
) -> None:
    processes.log.add_secret("hunter2")
    with pytest.raises(CommandFailedError) as caught:
        run(processes, work, 'echo "out $DATABASE_URL"; echo err >&2; exit 7', env={"DATABASE_URL": "hunter2"})
    assert (caught.value.completed.returncode, caught.value.completed.stdout, caught.value.completed.stderr) == (7, "out ***\n", "err\n")
    assert "hunter2" not in stream.getvalue().replace("::add-mask::hunter2", "") + (tmp_path / "job.log").read_text(encoding="utf-8")
    assert "::stop-commands::" in stream.getvalue()
    assert processes.run_isolated(["sh", "-c", "kill -KILL $$"], Isolation(work, work), check=False).returncode == 137


@possible
def test_a_folder_that_is_not_there(processes: Processes, work: Path) -> None:
    with pytest.raises(BadInputError, match="cannot be isolated") as caught:
        run(processes, work / "missing", "true")
    assert "FileNotFoundError" in caught.value.what
    assert "ISOLATION_REASON" in caught.value.next_step


def test_without_namespaces_only_the_environment_is_limited(processes: Processes, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROD_KEY", "secret")
    printed = run(processes, work, "pwd; id -u; env", active=False, env={"GIVEN": "yes"})
    assert printed.splitlines()[:2] == [str(work), str(os.geteuid())]
    assert "GIVEN=yes" in printed
    assert "secret" not in printed


def as_nobody(sudoers: str, work: Path) -> subprocess.CompletedProcess[str]:
    """Run an isolated command from a process of the user nobody, on a machine with these sudoers."""
    path = work.parent / "sudoers"
    path.write_text(sudoers, encoding="utf-8")
    path.chmod(0o440)
    step = (
        "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path; from azora_ci.core.actions import Actions;"
        "from azora_ci.core.clock import Clock; from azora_ci.core.job_log import JobLog; from azora_ci.core.process import Processes;"
        "from azora_ci.core.process.isolation import Isolation; w = Path(sys.argv[1]);"
        "print(Processes(JobLog(Actions(), Clock())).run_isolated(['sh', '-c', 'id -un; cat file'], Isolation(w, w)).stdout)"
    )
    script = 'mount --bind "$1" /etc/sudoers && shift && exec setpriv --reuid=nobody --regid=nogroup --clear-groups -- "$@"'
    inner = ["/usr/bin/python3", "-c", step, str(work), str(ROOT)]
    argv = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", script, "sh", str(path), *inner]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, cwd="/")


@as_root
def test_by_sudo(work: Path) -> None:
    completed = as_nobody("nobody ALL=(ALL) NOPASSWD: ALL\n", work)
    assert completed.stdout.split() == ["isolated", "of", "the", "application", "isolated", "of", "the", "application"], completed.stderr


@as_root
def test_without_root_and_sudo_it_is_refused(work: Path) -> None:
    completed = as_nobody("root ALL=(ALL) ALL\n", work)
    assert completed.returncode == 1
    assert "BadInputError: The command cannot be isolated: sudo: " in completed.stderr


@pytest.mark.parametrize(
    ("code", "stderr", "refused"),
    [
        (125, "isolation failed: OSError: no\n", True),
        (125, "anything\n", False),
        (1, "unshare: unshare failed: Operation not permitted\n", True),
        (1, "sudo: a password is required\n", True),
        (1, "Error: P1001\nsudo: x", False),
        (0, "sudo: warning\n", False),
    ],
)
def test_a_command_that_was_never_started(code: int, stderr: str, refused: bool) -> None:
    with pytest.raises(BadInputError) if refused else contextlib.nullcontext():
        isolation.require_start(code, stderr)
