"""The checks that a repository's own workflows give a commit of the default branch: candidates for ``checks.required``. Runs nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from azora_ci.cli.adopt.compose import document
from azora_ci.cli.adopt.files import regular
from azora_ci.core.errors import BadInputError

_FOLDER = ".github/workflows/"
_DELIVERS = re.compile(r"(?:^|[^a-z])(?:deploy|release|publish)", re.IGNORECASE)  # jobs that come after a release, or make one
_DEFAULT_BRANCHES = {"main", "master", "trunk", "*", "**"}


def found(folder: Path, files: Iterable[str], ours: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return names of checks, and the workflow files that give them. ``ours``: names of workflow files that azora-ci wrote.

    Counted are jobs that run on every push to the default branch: without a condition, a matrix, a called workflow or a computed name.
    """
    names: list[str] = []
    sources: list[str] = []
    for path in files:
        if path.startswith(_FOLDER) and path.endswith((".yml", ".yaml")) and path.removeprefix(_FOLDER) not in set(ours):
            jobs = list(_jobs(folder / path)) if regular(folder, path) else []
            names += jobs
            sources += [path] if jobs else []
    return tuple(dict.fromkeys(names)), tuple(sources)


def _jobs(path: Path) -> Iterator[str]:
    try:
        documents = document.read(path)
    except BadInputError:
        return
    workflow = documents[0] if documents else {}
    jobs = workflow.get("jobs")
    if not _runs_on_push(workflow.get("on")) or not isinstance(jobs, dict):
        return
    for job_id, job in jobs.items():
        if not isinstance(job, dict) or {"if", "strategy", "uses", "environment"} & job.keys():
            continue
        name = str(job.get("name") or job_id)
        if not _DELIVERS.search(f"{job_id} {name}") and "${{" not in name and re.fullmatch(r"[^\r\n\"\\]{1,100}", name):
            yield name


def _runs_on_push(triggers: Any) -> bool:
    if triggers == "push" or (isinstance(triggers, list) and "push" in triggers):
        return True
    if not isinstance(triggers, dict) or "push" not in triggers:
        return False
    push = triggers["push"] or {}
    if not isinstance(push, dict) or {"paths", "paths-ignore"} & push.keys():
        return False
    ignored = push.get("branches-ignore")
    if _DEFAULT_BRANCHES & set(map(str, ignored if isinstance(ignored, list) else [ignored])):
        return False
    branches = push.get("branches")
    return bool(_DEFAULT_BRANCHES & set(map(str, branches))) if isinstance(branches, list) else not {"tags", "tags-ignore"} & push.keys()
