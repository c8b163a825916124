"""What a Dockerfile says about the service that runs its image: ports, health check, whether it has the stage. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from azora_ci.cli.adopt.compose.variables import bounded, interpolate

_INSTRUCTION = re.compile(r"^[ \t]*(FROM|EXPOSE|HEALTHCHECK|ENTRYPOINT|CMD|ARG|ENV)[ \t]+(.*)$", re.IGNORECASE)
_TEXTS = 1024 * 1024  # characters of all instructions, with their variables put in
_FROM = re.compile(r"(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?", re.IGNORECASE)
_ASSIGNMENT = re.compile(r"(?<![A-Za-z0-9_])([A-Za-z_][A-Za-z0-9_]*)[= ](\S+)")


@dataclass(frozen=True)
class Image:
    """A stage of a Dockerfile with what it has from the stages below it: the image that it stands on, the ports of EXPOSE, and the words
    of HEALTHCHECK, ENTRYPOINT and CMD.
    """

    base: str = ""
    ports: tuple[int, ...] = ()
    health: str | None = None
    entrypoint: str = ""
    command: str = ""

    @property
    def starts(self) -> str:
        """Return what a container starts by itself."""
        return f"{self.entrypoint} {self.command}".strip()


def image(content: str, target: str | None) -> Image | None:
    """Return what the stage ``target``, by default the last one, says; None when the Dockerfile has no such stage."""
    stages: dict[str, Image] = {}
    last: str | None = None
    values: dict[str, str] = {}
    count = 0
    for line in re.sub(r"\\[ \t]*\r?\n(?:[ \t]*#.*\r?\n)*", " ", content).splitlines():
        instruction = _INSTRUCTION.match(line)
        if instruction is None:
            continue
        word, rest = instruction[1].upper(), interpolate(instruction[2].strip(), values).text
        count += len(rest)
        bounded(count, ["ARG and ENV"], _TEXTS)
        if word == "FROM" and (stage := _FROM.match(rest)):
            last = (stage[2] or str(len(stages))).lower()
            stages[last] = stages.get(stage[1].lower(), Image(stage[1]))
        elif word in {"ARG", "ENV"}:
            values |= dict(_ASSIGNMENT.findall(rest))
        elif last is not None:
            stages[last] = _with(stages[last], word, rest)
    return stages.get((target or last or "").lower())


def _with(stage: Image, word: str, rest: str) -> Image:
    if word == "EXPOSE":
        ports = tuple(int(port[1]) for port in re.finditer(r"(?<!\S)(\d{1,5})(?:/tcp)?(?!\S)", rest))
        return replace(stage, ports=(*stage.ports, *ports))
    if word in {"ENTRYPOINT", "CMD"}:
        words = " ".join(re.findall(r"[^\s\[\],\"]+", rest))
        return replace(stage, entrypoint=words, command="") if word == "ENTRYPOINT" else replace(stage, command=words)
    return replace(stage, health=None if rest.upper().startswith("NONE") else rest)
