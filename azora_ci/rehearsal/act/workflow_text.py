"""Read a workflow file as text: its jobs, their needs, the actions they use; write the workflow of a second attempt.

GitHub's "re-run failed jobs" runs failed jobs and all jobs that depend on them again, and carries over result and outputs of the
others. act has no such command. The workflow of a second attempt is the real workflow in which each carried-over job is replaced by
a job that only sets the outputs of the first attempt; all other jobs stay word for word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Set

_JOB = re.compile(r"^  ([A-Za-z0-9_-]+):[ \t]*$", re.MULTILINE)
_ENVIRONMENT = re.compile(r"^    environment:\n      name: (.+)\n      deployment: false.*\n", re.MULTILINE)
_USES = re.compile(r"uses:\s*([\w.-]+/[\w.-]+)(/[\w./-]+)?@([0-9a-f]{40})")


def for_act(text: str) -> str:
    """Return a workflow without ``deployment: false`` of environments, which act does not know: it makes no deployments anyway."""
    return _ENVIRONMENT.sub(r"    environment: \1\n", text)


def blocks(text: str) -> dict[str, str]:
    """Return job id -> text of the job, in the file's order. Raises ValueError when the workflow has no jobs."""
    _head, marker, body = text.partition("\njobs:\n")
    if not marker:
        raise ValueError("the workflow has no jobs")
    starts = list(_JOB.finditer(body))
    ends = [match.start() for match in starts[1:]] + [len(body)]
    return {match.group(1): body[match.start() : end] for match, end in zip(starts, ends, strict=True)}


def needs(text: str) -> dict[str, list[str]]:
    """Return job id -> ids of the jobs that it needs directly."""
    return {job: _needs_of(block) for job, block in blocks(text).items()}


def _needs_of(block: str) -> list[str]:
    inline = re.search(r"^    needs:[ \t]*\[?([^\]\n#]+)\]?", block, re.MULTILINE)
    if inline and inline.group(1).strip():
        return [name.strip() for name in inline.group(1).split(",")]
    listed = re.search(r"^    needs:[ \t]*\n((?:      - .+\n)+)", block, re.MULTILINE)
    return re.findall(r"- ([A-Za-z0-9_-]+)", listed.group(1)) if listed else []


def actions(text: str) -> list[tuple[str, str, str]]:
    """Return the actions used, each once and sorted: (owner/repository, folder in it or empty, commit)."""
    return sorted({(match.group(1), (match.group(2) or "").strip("/"), match.group(3)) for match in _USES.finditer(text)})


def called(text: str) -> tuple[str, str]:
    """Return (``owner/repository@commit``, path) of the workflow that a caller runs. Raises ValueError when it calls none."""
    match = re.search(r"^    uses: ([\w.-]+/[\w.-]+)/(\.github/workflows/[\w.-]+)@([0-9a-f]{40})$", text, re.MULTILINE)
    if match is None:
        raise ValueError("the workflow calls no other")
    return f"{match[1]}@{match[3]}", match[2]


def to_run_again(text: str, results: Mapping[str, str]) -> set[str]:
    """Return the jobs that "re-run failed jobs" runs: those that failed or were cancelled, and all that depend on them."""
    graph = needs(text)
    again = {job for job in graph if results.get(job) in {"failure", "cancelled"}}
    growing = True
    while growing:
        dependents = {job for job, direct in graph.items() if again.intersection(direct)} - again
        again |= dependents
        growing = bool(dependents)
    return again


def second_attempt(text: str, again: Set[str], outputs: Mapping[str, Mapping[str, str]]) -> str:
    """Return the workflow of a second attempt that runs the jobs ``again``; ``outputs``: job id -> outputs of the others."""
    for job, block in blocks(text).items():
        if job not in again:
            text = text.replace(block, _carried_over(job, _needs_of(block), outputs.get(job, {})))
    return text


def _carried_over(job: str, direct: list[str], outputs: Mapping[str, str]) -> str:
    lines = [f"  {job}:", f"    needs: {json.dumps(direct)}", "    runs-on: ubuntu-24.04"]
    if outputs:
        lines += ["    outputs:", *(f"      {name}: ${{{{ steps.carried.outputs.{name} }}}}" for name in sorted(outputs))]
    lines += ["    steps:", "      - id: carried", "        name: Carried over from the first attempt", "        env:"]
    numbered = [(f"OUTPUT_{number}", name, outputs[name]) for number, name in enumerate(sorted(outputs))]
    lines += [f"          {variable}: {json.dumps(value)}" for variable, _, value in numbered] or ["          NOTHING: none"]
    writes = [f'echo "{name}=${variable}" >> "$GITHUB_OUTPUT"' for variable, name, _ in numbered] or ["true"]
    lines += ["        run: |", *(f"          {write}" for write in writes)]
    return "\n".join(lines) + "\n\n"
