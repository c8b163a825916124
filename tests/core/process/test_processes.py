"""Children: masked, logged line by line, ended with all their descendants."""

from __future__ import annotations

import io
import re
import signal
import sys
import time

import pytest

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import BadInputError, NotTrueError
from azora_ci.core.job_log import JobLog, secrets_of_url
from azora_ci.core.process import CommandFailedError, Processes, is_alive, send_signal


@pytest.fixture
def stream():
    return io.StringIO()


@pytest.fixture
def processes(tmp_path, stream):
    children = Processes(JobLog(Actions(stream=stream, github=True), Clock(), tmp_path / "job.log"))
    yield children
    children.end_all()


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def wait_for(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_output_is_captured_logged_with_times_and_wrapped(processes, tmp_path, stream):
    completed = processes.run(python("import sys; print('out'); print('err', file=sys.stderr)"))
    assert (completed.returncode, completed.stdout, completed.stderr) == (0, "out\n", "err\n")
    log = (tmp_path / "job.log").read_text()
    assert re.search(r"^\d{4}-\d\d-\d\dT[\d:.]+Z out$", log, re.M)
    assert "::stop-commands::" in stream.getvalue()


def test_secrets_are_masked_in_argv_output_log_and_error(processes, tmp_path, stream):
    processes.log.add_secret("hunter2")
    with pytest.raises(CommandFailedError) as caught:
        processes.run([*python("import sys; print(sys.argv[1]); sys.exit('bad ' + sys.argv[1])"), "hunter2"])
    printed = stream.getvalue().replace("::add-mask::hunter2", "") + (tmp_path / "job.log").read_text() + caught.value.message()
    assert "hunter2" not in printed
    assert "bad ***" in caught.value.what
    assert "exit code 1" in caught.value.what


def test_a_failure_shows_none_for_empty_output(processes):
    with pytest.raises(CommandFailedError) as caught:
        processes.run(python("raise SystemExit(7)"))
    assert "exit code 7\nstdout: (none)\nstderr: (none)" in caught.value.what


def test_a_killed_command_is_said_to_be_killed(processes):
    with pytest.raises(CommandFailedError) as caught:
        processes.run(["bash", "-c", "kill -KILL $$"])
    assert caught.value.what.startswith("killed by signal 9\n")


def test_a_missing_program_is_bad_input(processes):
    with pytest.raises(BadInputError, match="cannot be started"):
        processes.run(["no-such-program-here"])


def test_a_timeout_ends_the_whole_group(processes, tmp_path):
    pid_file = tmp_path / "pid"
    code = (
        "import subprocess,sys,time; p=subprocess.Popen([sys.executable,'-c','import time; time.sleep(600)']);"
        f" open({str(pid_file)!r},'w').write(str(p.pid)); time.sleep(600)"
    )
    with pytest.raises(NotTrueError, match="took too long"):
        processes.run(python(code), timeout=3)
    grandchild = int(pid_file.read_text())
    wait_for(lambda: not is_alive(grandchild))


def test_end_all_ends_children_that_ignore_sigterm(processes, tmp_path):
    ready = tmp_path / "ready"
    code = f"import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open({str(ready)!r},'w').close(); time.sleep(600)"
    child = processes.start(python(code))
    wait_for(ready.exists)
    processes.end_all()
    assert child.poll() == -signal.SIGKILL


def test_stdin_is_fed_and_binary_pipes_pass_any_byte(processes):
    assert processes.run(python("import sys; print(len(sys.stdin.buffer.read()))"), stdin=b"x" * 1_000_000).stdout == "1000000\n"
    child = processes.start(python("import sys; sys.stdout.buffer.write(bytes(range(256)))"), stdout_pipe=True)
    assert child.stdout is not None
    assert child.stdout.read() == bytes(range(256))
    assert child.wait(30) == 0


def test_a_child_sees_no_secret_of_ours(processes, monkeypatch):
    monkeypatch.setenv("PROD_DATABASE_URL", "postgresql://hidden")
    code = "import os; print(os.environ.get('PROD_DATABASE_URL'), os.environ.get('GIVEN'))"
    assert processes.run(python(code), env={"GIVEN": "yes"}).stdout == "None yes\n"


def test_a_child_gets_nothing_that_github_alone_needs(processes, monkeypatch):
    monkeypatch.setenv("ACTIONS_RESULTS_URL", "https://hidden")
    monkeypatch.setenv("ACTIONS_SOMETHING_NEW", "hidden")
    assert "hidden" not in processes.run(python("import os; print(os.environ)")).stdout


def test_evidence_holds_no_secret_in_its_sentences_and_keeps_names(processes):
    processes.log.add_secret("hunter2-and-more")
    processes.log.add_secret("azora-registry", is_name=True)
    processes.log.add_secret("short")
    evidence = {
        "detail": "cannot use hunter2-and-more, a short word",
        "tests": [{"detail": "login of azora-registry with hunter2-and-more"}],
        "reference": "example/azora-registry/api:v1.2.3",
        "location": "s3://hunter2-and-more/prod",
        "rows": 3,
        "pair": ("a b", None),
    }
    assert processes.log.masked_evidence(evidence) == {
        "detail": "cannot use ***, a short word",
        "tests": [{"detail": "login of azora-registry with ***"}],
        "reference": "example/azora-registry/api:v1.2.3",
        "location": "s3://hunter2-and-more/prod",
        "rows": 3,
        "pair": ["a b", None],
    }


def test_a_detached_process_survives_end_all(processes, tmp_path):
    pid = processes.start_detached(python("import time; time.sleep(600)"), env={}, log=tmp_path / "service.log")
    try:
        processes.end_all()
        assert is_alive(pid)
    finally:
        send_signal(pid, signal.SIGKILL)
        wait_for(lambda: not is_alive(pid))


def test_huge_output_is_kept_in_the_log_but_not_in_memory(processes, tmp_path, monkeypatch):
    monkeypatch.setattr("azora_ci.core.process.CAPTURE_LIMIT", 10_000)
    completed = processes.run(python("for i in range(5000): print('line', i)"), echo=False)
    assert len(completed.stdout) <= 10_010
    assert completed.stdout.endswith("line 4999\n")
    assert (tmp_path / "job.log").read_text().count("line ") >= 5000


def test_what_must_not_be_shown_of_a_url():
    secrets = secrets_of_url("postgresql://u:p%40ss@h/d")
    assert {"postgresql://u:p%40ss@h/d", "p%40ss", "p@ss"} == set(secrets)
    assert secrets_of_url("not a url") == ["not a url"]
    assert secrets_of_url("http://[bad") == ["http://[bad"]
