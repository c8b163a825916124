"""Discover which Node.js and package manager an application uses, and the commands of that manager. Reads files, runs nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from azora_ci.cli.adopt.files import regular
from azora_ci.cli.adopt.repository import Files
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
    folder: str = "."  # of the package, below the repository

    @property
    def found(self) -> bool:
        """Tell whether the application has packages of Node.js, or names its version."""
        return self.manager is not None or self.node is not None

    @property
    def within(self) -> tuple[str, ...]:
        """Return what has a command run in the folder of the package."""
        return () if self.folder == "." else ("env", "-C", self.folder)

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


def place(files: Files, package: Mapping[str, Any], prisma: str) -> PurePosixPath:
    """Return the folder of the application's package: the top, unless the package there, if any, only serves those who develop.

    Then it is that of Prisma's package ``prisma``, or else of the only package with a lock file.
    """
    top = PurePosixPath()
    scripts = _mapping(package.get("scripts"))
    if package.get("dependencies") or package.get("workspaces") or "build" in scripts or list(files.named("pnpm-workspace.yaml")):
        return top
    locked = {path.parent for path in files.named(*lock_files.FILES) if files.mapping(path.parent / "package.json")} - {top}
    return PurePosixPath(prisma) if PurePosixPath(prisma) in locked else locked.pop() if len(locked) == 1 else top


def discover(folder: Path, package: Mapping[str, Any]) -> FoundToolchain:
    """Return the toolchain of a repository. ``package``: its package.json, which decides where it names a package manager."""
    lock_file = next((name for name in lock_files.FILES if (folder / name).is_file()), None)
    named = re.match(rf"(npm|pnpm|yarn|bun)@({_EXACT})?", str(package.get("packageManager", "")))
    engine = _dev_engine(package, "packageManager")
    manager = named[1] if named else engine.get("name") if engine.get("name") in EXAMPLES else lock_files.FILES.get(lock_file or "")
    version = named[2] if named and named[2] else _version(folder, manager, package)
    return FoundToolchain(manager, version, _node(folder, package), lock_file)


def _version(folder: Path, manager: str | None, package: Mapping[str, Any]) -> str | None:
    """Return the exact version of a manager that packageManager does not name."""
    if manager == "yarn":
        lock = _text(folder, "yarn.lock")
        if lock and "__metadata:" not in lock[:2000]:
            return _of_tables(package, "yarn", "volta", "engines") or LAST_YARN_1
        release = re.search(rf"^yarnPath:.*/yarn-({_EXACT})\.c?js", _text(folder, ".yarnrc.yml"), re.MULTILINE)
        if release:
            return release[1]
    if manager is None:
        return None
    engine = _dev_engine(package, "packageManager")
    candidates = [
        str(engine.get("version", "")) if engine.get("name") == manager else "",
        _of_tables(package, manager, "volta", "engines") or "",
        _of_version_managers(folder, manager) or "",
        _text(folder, ".bun-version").strip().removeprefix("v") if manager == "bun" else "",
    ]
    return next((version for version in candidates if re.fullmatch(_EXACT, version)), None)


def _node(folder: Path, package: Mapping[str, Any]) -> str | None:
    """Return the version of Node.js that a file names; of a range the first major version that is in it.

    Files of version managers count first, then package.json, then the base of the Dockerfile at the top.
    """
    for name in (".nvmrc", ".node-version"):
        line = re.sub(r"#.*", "", _text(folder, name)).strip().lower()
        if version := _node_version(line):
            return version
        if (code_name := line.removeprefix("lts/")) in CODE_NAMES:
            return CODE_NAMES[code_name]
    engine = _dev_engine(package, "runtime")
    named = [
        _of_tables(package, "node", "volta"),
        _of_version_managers(folder, "node"),
        _of_range(str(engine.get("version", ""))) if engine.get("name") == "node" else None,
        _of_range(str(_mapping(package.get("engines")).get("node", ""))),
    ]
    base = re.findall(r"^FROM\s+(?:--\S+\s+)*(?:[\w.-]+/)*node:([1-9]\d*(?:\.\d+){0,2})", _dockerfile(folder), re.MULTILINE | re.I)
    return next(filter(None, [*(_node_version(version or "") for version in named), *base]), None)


def _dockerfile(folder: Path) -> str:
    """Return the Dockerfile at the top with the defaults of its arguments put in."""
    content = _text(folder, "Dockerfile")
    defaults = re.findall(r"^ARG\s+(\w+)=[\"']?([^\s\"']+)", content, re.MULTILINE | re.IGNORECASE)
    values: dict[str, str] = dict(reversed(defaults))
    return re.sub(r"\$\{?(\w+)(?::?-([^}\s]*)\})?\}?", lambda used: values.get(used[1], str(used[2] or "")), content)


def _node_version(text: str) -> str | None:
    version = re.fullmatch(r"v?([1-9]\d*(?:\.\d+){0,2})", text.strip())
    return version[1] if version else None


def _of_range(text: str) -> str | None:
    """Return the first major version in a range of npm's; one that is open at an end, ``<23`` or ``>=14``, names none."""
    if ">" in text and "<" not in text:
        return None
    major = re.search(r"(?:^|[^<\d.])v?([1-9]\d*)", text)
    return major[1] if major else None


def _of_tables(package: Mapping[str, Any], name: str, *tables: str) -> str | None:
    """Return the exact version of a program in tables of package.json."""
    versions = (str(_mapping(package.get(table)).get(name, "")) for table in tables)
    return next((version for version in versions if re.fullmatch(_EXACT, version)), None)


def _of_version_managers(folder: Path, name: str) -> str | None:
    """Return the version of a program that asdf's .tool-versions or mise's mise.toml names."""
    asdf = re.search(rf"^{'(?:nodejs|node)' if name == 'node' else name}\s+v?(\d\S*)", _text(folder, ".tool-versions"), re.MULTILINE)
    mise = "\n".join(_text(folder, file) for file in ("mise.toml", ".mise.toml"))
    quoted = re.search(rf"^\"?{name}\"?\s*=\s*\"v?(\d[^\"]*)\"", mise, re.MULTILINE)
    return asdf[1] if asdf else quoted[1] if quoted else None


def _dev_engine(package: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return ``devEngines`` of package.json for packageManager or runtime, the first where it is a list."""
    engine = _mapping(package.get("devEngines")).get(kind)
    return _mapping(engine[0] if isinstance(engine, list) and engine else engine)


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(folder: Path, name: str) -> str:
    file = regular(folder, name)
    return file.read_text(encoding="utf-8-sig", errors="replace") if file else ""
