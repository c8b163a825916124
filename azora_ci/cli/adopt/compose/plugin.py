"""Ask the ``docker compose`` plug-in for the merged model, where this machine has it: it reads files, starts and contacts nothing.

Nothing is interpolated (``--no-interpolate``), so that no value of this machine's environment can reach the answer, which is read from a
pipe and written nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from azora_ci.cli.adopt.compose.model import Model, load_merged
from azora_ci.core.documents import Limits, UnreadableError, read_json

Run = Callable[[Sequence[str]], str | None]  # a command -> what it prints; None when it fails or cannot be started
_LIMITS = Limits(unique_keys=False)


def argv(root: Path, files: Sequence[str]) -> tuple[str, ...]:
    """Return the command that prints the model of compose files as JSON, whatever profiles their services are in."""
    named = [part for path in files for part in ("--file", str(root.resolve() / path))]
    return "docker", "compose", *named, "--profile", "*", "config", "--format", "json", "--no-interpolate"


def ask(root: Path, model: Model, run: Run) -> Model:
    """Return the model as the plug-in reads it; the given one, our own reading, where there is no plug-in or it cannot read the files."""
    if not model.complete or run(("docker", "compose", "version", "--short")) is None:
        return model  # it would fetch what lies elsewhere
    answer = run(argv(root, model.named))
    document = _document(answer)
    if document is None:
        return replace(model, notes=(*model.notes, "docker compose config could not read the files: they are read without it"))
    return load_merged(root, model, document)


def _document(answer: str | None) -> dict[str, Any] | None:
    try:
        document = read_json(answer or "", _LIMITS)
    except UnreadableError:
        return None
    return document if isinstance(document, dict) and isinstance(document.get("services"), dict) else None
