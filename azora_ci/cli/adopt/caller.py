"""Render a caller of one of our workflows: a short file that runs it from the repository that publishes azora-ci, pinned to a commit.

Everything in it is read from the called workflow: what starts it, its inputs, the secrets that it declares, and the permissions of its
jobs, for a called workflow never has more than its caller grants.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_HEAD = re.compile(r"^name: .*\n(?:run-name: .*\n)?", re.MULTILINE)
_REQUIRED = re.compile(r"^ *required: false\n", re.MULTILINE)  # as it is without the line
_TRIGGERS = re.compile(r"^on:\n(.*?)^  workflow_call:", re.MULTILINE | re.DOTALL)


def render(name: str, template: str, repository: str, commit: str) -> str:
    """Return the text of the caller of a workflow. ``template``: the workflow's text; ``repository``: ``owner/name``.

    Each secret is handed over by name. One that an environment of the caller's repository defines is empty there, and has its value in
    the called job that names the environment. ``secrets: inherit`` would do within one organization only, and hand over everything.
    """
    document = yaml.safe_load(template)
    head, triggers = _HEAD.search(template), _TRIGGERS.search(template)
    assert head and triggers  # noqa: S101 - tests/workflow: each of our workflows has them
    call = document[True]["workflow_call"]  # YAML 1.1 reads `on` as true. Inputs that no person gives keep their defaults
    permissions = ", ".join(f"{scope}: {access}" for scope, access in sorted(_permissions(document).items()))
    lines = [
        f"{head[0]}on:\n{_REQUIRED.sub('', triggers[1])}permissions: {{}}",
        "jobs:",
        "  production:",
        f"    permissions: {{ {permissions} }}",
        f"    uses: {repository}/.github/workflows/{name}@{commit}",
        "    with:",
        *(f"      {key}: ${{{{ inputs.{key} }}}}" for key in document[True]["workflow_dispatch"]["inputs"]),
        "    secrets:",
        *(f"      {key}: ${{{{ secrets.{key} }}}}" for key in call["secrets"]),
    ]
    return "\n".join(lines) + "\n"


def _permissions(document: dict[str, Any]) -> dict[str, str]:
    """Return the permissions that the jobs of a workflow ask for, together; ``write`` includes ``read``."""
    granted: dict[str, str] = {}
    for job in document["jobs"].values():
        for scope, access in job["permissions"].items():
            granted[scope] = max(granted.get(scope, ""), access)  # "write" comes after "read", and "none" before both
    return granted
