"""Find the command that starts a service as a process, where its configuration names none: in its Dockerfile or package.json."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_INTERPRETERS = {"node", "bun", "python", "python3", "deno", "ruby", "php"}
_CONTINUED = re.compile(r"\\\s*\n")


@dataclass(frozen=True)
class Startup:
    """A command, and where it was found: ``CMD of apps/web/Dockerfile``."""

    command: tuple[str, ...]
    source: str


def find(folder: Path, service: Mapping[str, Any]) -> Startup | None:
    """Return how a service starts in its build context ``folder``, or None. ``service``: its table of the configuration.

    An image starts in its working directory: a script that is not in the context itself is looked for in the folder of the context that
    WORKDIR ends with (``/shop/apps/web``: ``apps/web``), then beside the Dockerfile, and started there.
    """
    dockerfile = folder / str(service.get("dockerfile", "Dockerfile"))
    image = read(_text(dockerfile), service.get("build", {}).get("target"))
    entrypoint = tuple(service.get("entrypoint", image.entrypoint))
    command = tuple(service.get("command", () if "entrypoint" in service else image.command))
    said = "the configuration" if {"entrypoint", "command"} & service.keys() else f"ENTRYPOINT and CMD of {dockerfile.relative_to(folder)}"
    places = [folder, *(folder / place for place in _endings(image.folder)), dockerfile.parent]
    if entrypoint or command:
        placed = _placed((*entrypoint, *command), folder, places)
        if placed:
            return Startup(placed, said)
    for place in (dockerfile.parent, folder):
        start = _start_script(place / "package.json")
        if start:
            return Startup(
                _in_folder(("sh", "-c", start), folder, place), f"scripts.start of {(place / 'package.json').relative_to(folder)}"
            )
    return None


@dataclass(frozen=True)
class Image:
    """How a container starts: ENTRYPOINT, CMD and WORKDIR of a stage, inherited from the stages that it is based on."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    folder: str = ""


def read(text: str, target: str | None) -> Image:
    """Return how a container of a stage (None: the last one) starts."""
    stages = dict(_stages(text))
    name = target if target in stages else next(reversed(stages), "")
    image = Image()
    while name in stages:
        base, lines = stages.pop(name)
        folder = next((line.split(None, 1)[1] for line in reversed(lines) if line.upper().startswith("WORKDIR ")), "")
        entrypoint, command = _last(lines, "ENTRYPOINT"), _last(lines, "CMD")
        image = Image(image.entrypoint or entrypoint, image.command or command, image.folder or folder)
        name = base
    if image.entrypoint[:1] == ("docker-entrypoint.sh",):  # of the official images: it executes the command
        return Image((), image.command, image.folder)
    return image


def bases(text: str) -> list[str]:
    """Return the images that a Dockerfile begins with, in order; not its own stages, nor one whose name an argument holds."""
    stages = dict(_stages(text))
    found = [base for base, _ in stages.values()]
    return [base for base in dict.fromkeys(found) if base not in stages and base != "scratch" and "$" not in base]


def _endings(folder: str) -> list[str]:
    """Return the folders that a working directory of an image may stand for: ``/shop/apps/web``: ``apps/web``, ``web``."""
    parts = [part for part in folder.split("/") if part]
    return ["/".join(parts[number:]) for number in range(1, len(parts))]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _stages(text: str) -> Iterator[tuple[str, tuple[str, list[str]]]]:
    """Yield (name or number of a stage, (its base, its instructions))."""
    name, base, lines = None, "", list[str]()
    count = 0
    for raw in _CONTINUED.sub(" ", text).splitlines():
        line = raw.strip()
        start = re.match(r"FROM\s+(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?", line, re.IGNORECASE)
        if start:
            if name is not None:
                yield name, (base, lines)
            name, base, lines = start[2] or str(count), start[1], []
            count += 1
        elif name is not None:
            lines.append(line)
    if name is not None:
        yield name, (base, lines)


def _last(lines: list[str], instruction: str) -> tuple[str, ...]:
    values = [line[len(instruction) :].strip() for line in lines if line.upper().startswith(f"{instruction} ")]
    if not values:
        return ()
    try:
        words = json.loads(values[-1])
    except ValueError:
        words = None
    return tuple(map(str, words)) if isinstance(words, list) else ("sh", "-c", f"exec {values[-1]}")


def _placed(command: tuple[str, ...], folder: Path, places: list[Path]) -> tuple[str, ...] | None:
    """Return a command that is started in the first of the places that has its script; None when none has it."""
    words = shlex.split(command[2].removeprefix("exec ")) if command[:2] == ("sh", "-c") else list(command)
    script = next((word for word in words[1:] if not word.startswith("-")), None)
    if Path(words[0]).name not in _INTERPRETERS or script is None or words[1] == "-m":
        return command
    if Path(script).is_absolute():  # a path of the image: below its working directory, most likely
        inside = next((ending for ending in _endings(script) if (folder / ending).is_file()), None)
        return tuple(word.replace(script, inside) for word in command) if inside else None
    place = next((place for place in places if (place / script).is_file() or (place / f"{script}.js").is_file()), None)
    return _in_folder(command, folder, place) if place else None


def _in_folder(command: tuple[str, ...], folder: Path, place: Path) -> tuple[str, ...]:
    if place == folder and command[:2] != ("sh", "-c"):
        return command
    text = command[2] if command[:2] == ("sh", "-c") else shlex.join(command)
    text = text if text.startswith("exec ") else f"exec {text}"
    inside = "" if place == folder else f"cd {shlex.quote(place.relative_to(folder).as_posix())} && "
    return "sh", "-c", f"{inside}{text}"


def _start_script(package: Path) -> str | None:
    try:
        scripts = json.loads(package.read_text(encoding="utf-8-sig")).get("scripts")
    except (OSError, ValueError, AttributeError):
        return None
    start = scripts.get("start") if isinstance(scripts, dict) else None
    return start if isinstance(start, str) and start.strip() else None
