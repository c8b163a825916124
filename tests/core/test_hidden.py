"""No other process reads an entry point's environment, and none of its libraries is loaded before that is so."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import ROOT

# Root may look into any process: the rights to do so (CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_PERFMON) go first, by PR_CAPBSET_DROP and exec.
WITHOUT_RIGHTS = (
    "import ctypes, os, sys; [ctypes.CDLL(None).prctl(24, right, 0, 0, 0) for right in (19, 21, 38)];"
    " os.execv(sys.executable, [sys.executable, '-c', *sys.argv[1:]])"
)
READ_OURS = "import os, pathlib; print(pathlib.Path(f'/proc/{os.getppid()}/environ').read_bytes())"


def test_a_child_cannot_read_our_environment() -> None:
    """The child stands for an application's build script, which runs as the same user."""

    def read_environment(harden: str) -> subprocess.CompletedProcess[str]:
        ours = f"import subprocess, sys; {harden}; sys.exit(subprocess.run([sys.executable, '-c', {READ_OURS!r}]).returncode)"
        env = {"PROD_DATABASE_URL": "postgresql://u:hunter2@h/d", "PYTHONPATH": str(ROOT)}
        argv = [sys.executable, "-c", WITHOUT_RIGHTS, ours]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, env=env)

    assert "hunter2" in read_environment("pass").stdout  # without the protection, a child reads the secret
    completed = read_environment("import azora_ci.core.hidden")
    assert completed.returncode == 1
    assert "PermissionError" in completed.stderr
    assert "hunter2" not in completed.stdout + completed.stderr


ENTRY_POINTS = sorted(path for path in (ROOT / "scripts").glob("*.py") if not path.name.startswith("_"))
# Runs an entry point, and prints every module beyond the standard library that is looked for while the process can be read (prctl 3).
WATCH = """
import ctypes, runpy, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in sys.stdlib_module_names and ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) != 0:
            print("EARLY", name)
sys.meta_path.insert(0, Watch())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
PACKAGES = {"azora_ci", "azora_ci.core", "azora_ci.core.hidden"}  # which import nothing


@pytest.mark.parametrize("script", ENTRY_POINTS, ids=lambda path: path.stem)
def test_an_entry_point_hides_its_environment_before_any_other_import(script) -> None:
    argv = [sys.executable, "-c", WATCH, str(script), "--help"]
    completed = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, env={"PYTHONPATH": str(ROOT)})
    assert completed.returncode == 0, completed.stderr
    assert "Usage: " in completed.stdout
    early = {line.removeprefix("EARLY ") for line in completed.stdout.splitlines() if line.startswith("EARLY ")}
    assert early == PACKAGES
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 15


def test_there_are_entry_points() -> None:
    assert len(ENTRY_POINTS) >= 12
