"""The values of a deployment fill the block at the top of a script completely, or there is no script.

``tests/rollback/test_instructions.py`` runs the filled scripts on a real database.
"""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from azora_ci.database.restore import scripts
from tests.support import ROOT

ID = "1764000000-abc123"
KEY = "prod/it's $(touch x).sql.gz"
BACKUP = {"location": f"s3://b/{KEY}", "version_id": "v;1", "sha256": "9f" * 32, "tables": 2, "rows": 0}
TEMPLATE = f"#!/usr/bin/env bash\nbucket=\nkey= # of the object\n{scripts._END} ---\nempty=\necho $bucket\n"


def values(script: str) -> dict[str, str]:
    """Return what bash reads in a script's block of values."""
    block, _, _ = script.partition(scripts._END)
    printed = subprocess.run(
        ["bash", "-c", f"{block}\ndeclare -p deployment_id bucket key version_id sha256 tables rows | sed 's/^declare -- //'"],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    pairs = (line.split("=", 1) for line in printed.stdout.splitlines())
    return {name: value.removeprefix('"').removesuffix('"').replace("\\$", "$") for name, value in pairs}


@pytest.mark.parametrize(
    ("backup", "expected"),
    [
        (BACKUP, {"version_id": "v;1", "sha256": "9f" * 32, "tables": "2", "rows": "0"}),
        ({"location": BACKUP["location"]}, {"version_id": "", "sha256": "", "tables": "", "rows": ""}),
        (
            BACKUP | {"version_id": None, "tables": None, "rows": "1; DROP"},
            {"version_id": "", "sha256": "9f" * 32, "tables": "", "rows": ""},
        ),
    ],
    ids=["complete", "location only", "half known"],
)
def test_bash_reads_the_values_of_the_backup(backup: dict[str, Any], expected: dict[str, str]):
    assert values(scripts.restore_script(backup, ID)) == {"deployment_id": ID, "bucket": "b", "key": KEY, **expected}


def test_only_the_block_is_filled():
    filled = scripts.fill(TEMPLATE, {"bucket": "a b", "key": "k"})
    assert filled == f"#!/usr/bin/env bash\nbucket='a b'\nkey=k # of the object\n{scripts._END} ---\nempty=\necho $bucket\n"


@pytest.mark.parametrize(
    ("template", "filling"),
    [
        (TEMPLATE, {"bucket": "b"}),
        (TEMPLATE, {"bucket": "b", "key": "k", "empty": ""}),
        (TEMPLATE.replace("key=", "key=k"), {"bucket": "b", "key": "k"}),
        (TEMPLATE.replace(scripts._END, "#"), {"bucket": "b", "key": "k"}),
        (TEMPLATE.replace("key=", "bucket="), {"bucket": "b"}),
    ],
    ids=["unfilled", "unknown", "filled already", "no end of the block", "twice"],
)
def test_an_unfilled_or_unknown_value_is_an_error(template: str, filling: dict[str, str]):
    with pytest.raises(ValueError, match="block of values"):
        scripts.fill(template, filling)


@pytest.mark.parametrize("name", [scripts.RESTORE_SCRIPT, scripts.SWAP_SCRIPT])
def test_below_the_block_a_script_is_its_file(name: str):
    source = (ROOT / "azora_ci/database/restore" / name).read_text(encoding="utf-8")
    assert scripts.both(BACKUP, ID)[name].partition(scripts._END)[2] == source.partition(scripts._END)[2] != ""
