"""Real package managers in exact versions, installed as the action ``toolchain`` does, once for each process that runs tests."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from azora_ci.core.config import ToolchainSettings
from tests.support import ROOT

INSTALL = ROOT / ".github/actions/toolchain/install.sh"
NPM, PNPM, YARN_1, YARN_4, BUN = "npm@10.9.0", "pnpm@9.12.0", "yarn@1.22.22", "yarn@4.5.0", "bun@1.3.2"
NEWEST_PNPM = "pnpm@12.21.0"  # a native program
MANAGERS = (NPM, PNPM, NEWEST_PNPM, YARN_1, YARN_4, BUN)


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="package-managers-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def install(spec: str, folder: Path, *, cwd: Path | None = None, package: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the action's script with ``folder`` as the runner's temporary folder. ``package``: another one than ``spec`` asks for."""
    folder.mkdir(parents=True, exist_ok=True)
    toolchain = ToolchainSettings(package_manager=spec)
    env = {
        **os.environ,
        "RUNNER_TEMP": str(folder),
        "GITHUB_PATH": str(folder / "path"),
        "npm_config_cache": str(_folder() / "npm-cache"),
        "TOOLCHAIN_MANAGER": str(toolchain.manager),
        "TOOLCHAIN_VERSION": str(toolchain.version),
        "TOOLCHAIN_PACKAGE": package or str(toolchain.package),
    }
    return subprocess.run(["bash", str(INSTALL)], check=False, env=env, cwd=cwd or folder, capture_output=True, text=True, timeout=200)


@cache
def program(spec: str) -> Path:
    """Return the program of a package manager, ``pnpm@9.12.0``."""
    folder = _folder() / spec
    completed = install(spec, folder)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return Path((folder / "path").read_text().strip()) / spec.partition("@")[0]


def run(spec: str, *arguments: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a package manager in a folder, with a home of its own."""
    env = {
        **os.environ,
        "npm_config_cache": str(_folder() / "npm-cache"),
        "YARN_ENABLE_TELEMETRY": "0",
        "YARN_GLOBAL_FOLDER": str(_folder() / "yarn"),
        "YARN_CACHE_FOLDER": str(_folder() / f"cache-{spec}"),
        "XDG_DATA_HOME": str(_folder() / "data"),
        **environ,
    }
    return subprocess.run([str(program(spec)), *arguments], check=False, cwd=folder, env=env, capture_output=True, text=True, timeout=200)
