"""A step starts fast because heavy libraries are imported when they are needed; ``scripts/bench start`` measures it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from azora_ci.core.pipeline import JOBS

HEAVY = [
    "boto3",
    "botocore",
    "requests",
    "jsonschema",
    "docker",
    "psycopg2",
    "prometheus_client",
    "isal",
    "hypothesis",
    "semver",
    "asyncssh",
]


@pytest.mark.parametrize("job", JOBS)
def test_no_heavy_library_is_imported_at_start(job):
    code = (
        "import json, sys; from azora_ci.steps.runner import command; command(sys.argv[1]);"
        "print(json.dumps([name for name in sys.argv[2:] if name in sys.modules]))"
    )
    completed = subprocess.run([sys.executable, "-c", code, job, *HEAVY], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(completed.stdout) == []
