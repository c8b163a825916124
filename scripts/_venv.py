"""Make or reuse a virtual environment from a hashed requirements file; standard library only.

``python3 scripts/_venv.py FOLDER REQUIREMENTS`` prints the path of the environment's Python. The environment is made anew when the
requirements or the interpreter changed; a half-made one (a killed run) is never taken for a finished one, because its stamp is
written last. Two runs at once wait for each other.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)


def ensure(folder: Path, requirements: Path) -> Path:
    """Return the Python of the environment in ``folder``, which holds exactly ``requirements`` and sees this checkout."""
    if sys.version_info < OLDEST:
        found = ".".join(map(str, sys.version_info[:3]))
        sys.exit(f"Python {found} is too old: azora-ci needs Python {OLDEST[0]}.{OLDEST[1]} or newer; run with a newer python3")
    stamp = folder / "azora-stamp"
    wanted = hashlib.sha256(requirements.read_bytes() + sys.version.encode() + str(ROOT).encode()).hexdigest()
    python = folder / "bin" / "python"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted and python.exists():
            return python
        _make(folder, python, requirements)
        stamp.write_text(wanted, encoding="utf-8")
    return python


def _make(folder: Path, python: Path, requirements: Path) -> None:
    count = sum("==" in line for line in requirements.read_text(encoding="utf-8").splitlines())
    _say(f"Setting up {folder.name} with {count} packages from {requirements.name} (once; about a minute)")
    started = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(folder)], "python3 -m venv needs the package python3-venv on Debian and Ubuntu")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "--no-deps"]
    _run([*pip, "-r", str(requirements)], "a package index must be reachable; run again to continue")
    site = next((folder / "lib").glob("python3.*/site-packages"))
    (site / "azora_ci.pth").write_text(f"{ROOT}\n", encoding="utf-8")
    _say(f"{folder.name} is ready after {time.monotonic() - started:.0f} s")


def _run(argv: list[str], hint: str) -> None:
    if subprocess.run(argv, check=False, stdout=sys.stderr).returncode != 0:
        sys.exit(f"failed: {' '.join(argv)}\n{hint}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(ensure(Path(sys.argv[1]).absolute(), Path(sys.argv[2])))
