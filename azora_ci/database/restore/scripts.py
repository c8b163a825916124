"""Put the values of one backup into the shell scripts of a database rollback, which lie beside this module.

``restore-database.sh`` never touches the live database: it restores into a new database and compares the number of rows.
``swap-database.sh`` swaps the two databases by renaming, which takes a moment, or swaps them back. psql and aws take their secrets
from the environment.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

RESTORE_SCRIPT = "restore-database.sh"
SWAP_SCRIPT = "swap-database.sh"
_END = "# --- End of the values"
_UNFILLED = re.compile(r"^(\w+)=(?=\s)", re.MULTILINE)


def bucket_and_key(location: str) -> tuple[str, str]:
    """Return bucket and key of a location ``s3://bucket/key``."""
    parts = urlsplit(location)
    return parts.netloc, parts.path.lstrip("/")


def one_line(location: str) -> str:
    """Return the guide's one-line restore, hardened: it stops at the first error and writes to the new database only."""
    return f'set -o pipefail; aws s3 cp {shlex.quote(location)} - | gunzip | psql -X -v ON_ERROR_STOP=1 -d "$RESTORED"'


def restore_script(backup: Mapping[str, Any], deployment_id: str) -> str:
    """Return the script that restores this backup (the record's ``database_backup``) into a new database on the same server."""
    bucket, key = bucket_and_key(backup["location"])
    values = {"deployment_id": deployment_id, "bucket": bucket, "key": key}
    values |= {name: backup.get(name) or "" for name in ("version_id", "sha256")}
    values |= {name: str(backup[name]) if isinstance(backup.get(name), int) else "" for name in ("tables", "rows")}
    return fill(_template(RESTORE_SCRIPT), values)


def swap_script(deployment_id: str) -> str:
    """Return the script that swaps the restored database with the live one by renaming; its argument ``back`` undoes that."""
    return fill(_template(SWAP_SCRIPT), {"deployment_id": deployment_id})


def both(backup: Mapping[str, Any], deployment_id: str) -> dict[str, str]:
    """Return the texts of both scripts by file name."""
    return {RESTORE_SCRIPT: restore_script(backup, deployment_id), SWAP_SCRIPT: swap_script(deployment_id)}


def fill(template: str, values: Mapping[str, str]) -> str:
    """Return a script with ``values``, quoted, in the block at its top. Raises ValueError unless they are exactly the block's names."""
    block, end, commands = template.partition(_END)
    names = _UNFILLED.findall(block) if end else []
    if sorted(names) != sorted(values):
        raise ValueError(f"the script's block of values has {sorted(names)}, not {sorted(values)}")
    return _UNFILLED.sub(lambda name: name[0] + shlex.quote(values[name[1]]), block) + end + commands


def _template(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
