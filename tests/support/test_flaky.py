"""The second chance of scripts/test, with real runs of pytest: it hides nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

SAMPLE = """
from pathlib import Path
import pytest

def fails_the_first_time(name):
    marker = Path(__file__).with_name("seen-" + name)
    first = not marker.exists()
    marker.touch()
    assert not first

@pytest.mark.parametrize("name", {flaky})
def test_flaky(name):
    fails_the_first_time(name)

def test_good(): ...

def test_other():
    assert {other}
"""


class Suite:
    """A folder with a sample of tests, and runs of it that share a report."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.report = folder / "flaky.txt"

    def run(self, *more: str, flaky: tuple[str, ...] = (), other: str = "True") -> tuple[int, str]:
        (self.folder / "test_sample.py").write_text(SAMPLE.format(flaky=list(flaky), other=other))
        argv = [sys.executable, "-m", "tests.support.flaky", "--report", str(self.report), "--first=--durations=1"]
        argv += ["--", f"--rootdir={self.folder}", str(self.folder), *more]
        env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # starts in a third of the time
        completed = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
        return completed.returncode, completed.stdout + completed.stderr

    def flaky(self) -> list[str]:
        return self.report.read_text().splitlines() if self.report.exists() else []


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return Suite(tmp_path)


def named(*names: str) -> list[str]:
    return [f"test_sample.py::test_flaky[{name}]" for name in names]


def test_a_suite_that_passes_runs_once(suite: Suite) -> None:
    code, output = suite.run()
    assert code == 0, output
    assert output.count("test session starts") == 1
    assert output.splitlines()[-1] == "== nothing failed twice; 0 flaky, at most 2 are borne"
    assert suite.flaky() == []


def test_what_passes_only_alone_is_named_and_kept(suite: Suite) -> None:
    code, output = suite.run(flaky=("a", "b"))
    assert code == 0, output
    assert "slowest 1 durations" in output.partition("once more, alone")[0]
    assert "slowest" not in output.partition("once more, alone")[2]
    assert suite.flaky() == named("a", "b")
    assert output.splitlines()[-3:] == [
        "== nothing failed twice; 2 flaky, at most 2 are borne",
        *(f"flaky: {test}" for test in named("a", "b")),
    ]


def test_too_many_fail_over_all_runs_together(suite: Suite) -> None:
    suite.report.write_text("".join(f"{test}\n" for test in named("a", "b")))
    code, output = suite.run()
    assert (code, output.splitlines()[-1]) == (0, f"flaky: {named('b')[0]}"), "what an earlier run noted is said again at the end"
    code, output = suite.run(flaky=("c",))
    assert code == 1, output
    assert "nothing failed twice; 3 flaky, at most 2 are borne" in output
    assert suite.flaky() == named("a", "b", "c")


def test_what_fails_twice_fails_and_is_told_from_what_is_flaky(suite: Suite) -> None:
    code, output = suite.run(flaky=("a",), other="1 == 2")
    assert code == 1
    assert output.splitlines()[-3:] == [
        "== failed twice; 1 flaky, at most 2 are borne",
        "failed: test_sample.py::test_other",
        "flaky: test_sample.py::test_flaky[a]",
    ]


def test_what_is_no_failure_of_a_test_gets_no_second_chance(suite: Suite) -> None:
    code, output = suite.run(other="(")
    assert code == 2
    assert output.count("test session starts") == 1
    assert suite.run("-k", "nothing-of-that-name")[0] == 5
