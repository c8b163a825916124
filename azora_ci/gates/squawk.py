"""What the linter squawk says of files of SQL, where that is installed. It runs beside the judgement, which counts."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from azora_ci.core.environment import process_environment
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
    beside = Path(sys.executable).parent / "squawk"
    program = str(beside) if beside.is_file() else shutil.which("squawk", path=process_environment().get("PATH"))
    if program is None or not files:
        return None
    completed = processes.run((program, "--reporter", "json", *files), timeout=SECONDS, check=False, echo=False)
    try:
        found = [
            Remark(entry["file"], entry["line"] + 1, entry["rule_name"], " ".join(filter(None, (entry["message"], entry["help"]))))
            for entry in json.loads(completed.stdout)
        ]
    except (ValueError, LookupError, TypeError):
        return None
    return [remark for remark in found if not remark.rule.startswith(_NOT_OURS)]
