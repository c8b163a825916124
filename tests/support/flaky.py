"""Run pytest, and each failed test once more, alone: tests that pass only then are named as flaky, kept in a file, and limited.

    python -m tests.support.flaky --report FILE [--limit N] [--first OPTION …] -- PYTEST ARGUMENTS

Tests that race real processes share two cores, so one slow moment may fail one; a real failure fails again. ``--first`` options are
for the first run only. FILE gains a line for each flaky test, and more than N lines in it are a failure of their own: a suite that
needs its second chance often proves nothing. Exit codes: 0 passed; 1 a test failed twice, or too many are flaky; others are pytest's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

TESTS_FAILED = 1  # https://docs.pytest.org/en/stable/reference/exit-codes.html


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as cache:  # of its own: an earlier run's failures must not be run again
        code = _pytest(cache, *options.first, *options.pytest)
        failed = _failed(cache)
        failed_again: list[str] = []
        if code == TESTS_FAILED and failed:
            print(f"\n== {len(failed)} failed: once more, alone", flush=True)
            code = _pytest(cache, "--last-failed", "-v", *options.pytest)
            failed_again = _failed(cache)
    if code not in {0, TESTS_FAILED}:
        return code
    with options.report.open("a", encoding="utf-8") as file:
        file.writelines(f"{test}\n" for test in failed if test not in failed_again)
    return verdict(code, failed_again, options.report.read_text(encoding="utf-8").splitlines(), options.limit)


def verdict(code: int, failed_again: Sequence[str], flaky: Sequence[str], limit: int) -> int:
    """Print the tests that failed twice and, of all runs that share the report, those that passed only alone; return the exit code."""
    print("\n== " + ("failed twice" if failed_again else "nothing failed twice") + f"; {len(flaky)} flaky, at most {limit} are borne")
    for test in failed_again:
        print(f"failed: {test}")
    for test in flaky:
        print(f"flaky: {test}")
    sys.stdout.flush()
    return code or (TESTS_FAILED if len(flaky) > limit else 0)


def _pytest(cache: str, *arguments: str) -> int:
    argv = [sys.executable, "-m", "pytest", "-o", f"cache_dir={cache}", *arguments]
    return subprocess.run(argv, check=False).returncode


def _failed(cache: str) -> list[str]:
    try:
        return list(json.loads((Path(cache) / "v/cache/lastfailed").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return []


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.support.flaky", description="Run pytest, and what failed once more, alone.")
    parser.add_argument("--report", type=Path, required=True, metavar="FILE", help="gains a line for each test that passed only alone")
    parser.add_argument("--limit", type=int, default=2, metavar="N", help="more lines in FILE are a failure (default: 2)")
    parser.add_argument("--first", action="append", default=[], metavar="OPTION", help="of pytest, for the first run only")
    parser.add_argument("pytest", nargs="*", metavar="PYTEST ARGUMENTS")
    return parser


if __name__ == "__main__":
    sys.exit(main())
