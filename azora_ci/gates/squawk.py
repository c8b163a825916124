"""What the linter squawk says of files of SQL, where that is installed. It runs beside the judgement, which counts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from azora_ci.core.documents import read_json
from azora_ci.core.errors import AzoraError
from azora_ci.core.process import Processes

SECONDS = 60.0
# Rules of style, and those about a file that a tool runs in its own transaction with its own timeouts.
_NOT_OURS = ("prefer-", "require-lock-timeout", "require-statement-timeout", "require-timeout-settings", "syntax-error")


@dataclass(frozen=True)
class Remark:
    """What squawk says of a line (1 is the first): the name of its rule, and a sentence."""

    file: str
    line: int
    rule: str
    message: str


def remarks(files: Sequence[str], processes: Processes) -> list[Remark] | None:
    """Return squawk's remarks; None where it is not installed, or gives no answer that can be read."""
    program = Path(sys.executable).parent / "squawk"  # the package squawk-cli in azora-ci's own environment, nobody else's program
    if not program.is_file() or not files:
        return None
    try:
        completed = processes.run((str(program), "--reporter", "json", *files), timeout=SECONDS, check=False, echo=False)
        found = [
            Remark(entry["file"], entry["line"] + 1, entry["rule_name"], " ".join(filter(None, (entry["message"], entry["help"]))))
            for entry in read_json(completed.stdout)
        ]
    except (AzoraError, ValueError, LookupError, TypeError):
        return None
    return [remark for remark in found if not remark.rule.startswith(_NOT_OURS)]
