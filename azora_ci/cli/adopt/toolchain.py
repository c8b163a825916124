"""Discover which Node.js and package manager an application uses, and the commands of that manager. Reads files, runs nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azora_ci.gates.audit import lock_files

LAST_YARN_1 = "1.22.22"
EXAMPLES = {"npm": "10.9.0", "pnpm": "9.12.0", "yarn": "4.5.0", "bun": "1.3.2"}  # where no file names a version
CODE_NAMES = {"hydrogen": "18", "iron": "20", "jod": "22", "krypton": "24"}  # of Node.js, as .nvmrc may name it
_EXACT = r"\d+\.\d+\.\d+(?:-[0-9A-Za-z.]+)?"


@dataclass(frozen=True)
class FoundToolchain:
    """What was found. ``version`` is exact, None where no file names it; ``lock_file``: its name, None when there is none."""

    manager: str | None = None
    version: str | None = None
    node: str | None = None
    lock_file: str | None = None

    @property
    def name(self) -> str:
        """Return the package manager's name; npm where none was found."""
        return self.manager or "npm"

    @property
    def install(self) -> tuple[str, ...]:
        """Return the command that installs exactly what is locked."""
        if self.name == "yarn" and self.version is not None and self.version.startswith(("0.", "1.")):
            return "yarn", "install", "--frozen-lockfile"
        return {
            "npm": ("npm", "ci"),
            "pnpm": ("pnpm", "install", "--frozen-lockfile"),
            "yarn": ("yarn", "install", "--immutable"),
            "bun": ("bun", "install", "--frozen-lockfile"),
        }[self.name]

    @property
    def execute(self) -> tuple[str, ...]:
        """Return what stands before a program of an installed package, such as prisma."""
        return {"npm": ("npx",), "pnpm": ("pnpm", "exec"), "yarn": ("yarn", "run"), "bun": ("bun", "run")}[self.name]


def discover(folder: Path, package: Mapping[str, Any]) -> FoundToolchain:
    """Return the toolchain of a repository. ``package``: its package.json, which decides where it names a package manager."""
    lock_file = next((name for name in lock_files.FILES if (folder / name).is_file()), None)
    named = re.match(rf"(npm|pnpm|yarn|bun)@({_EXACT})(?:\+.*)?$", str(package.get("packageManager", "")))
    manager = named[1] if named else lock_files.FILES.get(lock_file or "")
    version = named[2] if named else _version(folder, manager, package)
    return FoundToolchain(manager, version, _node(folder, package), lock_file)


def _version(folder: Path, manager: str | None, package: Mapping[str, Any]) -> str | None:
    """Return the exact version of a manager that packageManager does not name."""
    if manager == "yarn":
        lock = folder / "yarn.lock"
        if lock.is_file() and "__metadata:" not in lock.read_text(encoding="utf-8", errors="replace")[:2000]:
            return LAST_YARN_1
        release = re.search(rf"^yarnPath:.*/yarn-({_EXACT})\.c?js", _text(folder / ".yarnrc.yml"), re.MULTILINE)
        return release[1] if release else None
    engines = package.get("engines")
    version = str(engines.get(manager, "")) if isinstance(engines, dict) else ""
    return version if re.fullmatch(_EXACT, version) else None


def _node(folder: Path, package: Mapping[str, Any]) -> str | None:
    """Return the version of Node.js that .nvmrc, .node-version or engines names; of a range the first major version in it."""
    for name in (".nvmrc", ".node-version"):
        line = _text(folder / name).strip().lower()
        if version := re.fullmatch(r"v?([1-9]\d*(?:\.\d+){0,2})", line):
            return version[1]
        if (code_name := line.removeprefix("lts/")) in CODE_NAMES:
            return CODE_NAMES[code_name]
    engines = package.get("engines")
    major = re.search(r"[1-9]\d*", str(engines.get("node", ""))) if isinstance(engines, dict) else None
    return major[0] if major else None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
