"""A workload that is deployed, in the middle of being read, and which kind of service it is. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from azora_ci.cli.adopt.compose.found import WEB, WORKER
from azora_ci.cli.adopt.compose.kind import is_scheduler
from azora_ci.cli.adopt.kubernetes import routes
from azora_ci.cli.adopt.kubernetes.images import Build
from azora_ci.cli.adopt.kubernetes.workload import Workload
from azora_ci.clients.kubernetes.objects import Document

_FRONT = re.compile(r"(?:^|[^a-z])(?:front(?:-?end)?|gateway|web|www|ui|site|proxy|bff|app|portal|store-?front)(?:$|[^a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """A workload that is deployed, in the middle of being read."""

    id: str
    workload: Workload
    container: Document
    build: Build
    reached: routes.Reached
    kind: str = WEB
    source: str = ""
    mark: str = ""


def with_kinds(parts: Sequence[Part]) -> list[Part]:
    """Return the parts as web services or workers; there is always one that takes requests, marked when nothing says which."""
    decided = [_with_kind(part) for part in parts]
    if not decided or any(part.kind == WEB for part in decided):
        return decided
    asked = [part for part in decided if part.reached.services] or decided
    first = next((part for part in asked if _FRONT.search(part.workload.name)), asked[0])
    only = len([part for part in decided if part.reached.services]) == 1
    mark = "no Ingress is here, and users have to reach one of them: is it this one?"
    unsure = "no Ingress is here: worker, or web with route_prefix and public_health_url, where users reach it"
    return [
        replace(part, kind=WEB, source="the only one with a Service" if only else "", mark="" if only else mark)
        if part is first
        else replace(part, mark=unsure if part.reached.services else part.mark)
        for part in decided
    ]


def _with_kind(part: Part) -> Part:
    if part.reached.routes or part.reached.open:
        return replace(part, kind=WEB, source=part.reached.routes[0].source if part.reached.routes else part.reached.open)
    mark = (
        "it is called a scheduler: both versions run while a release moves; take it out where that must not be"
        if is_scheduler(part.workload.name)
        else ""
    )
    return replace(part, kind=WORKER, source="no route leads to it" if part.reached.services else "it has no Service", mark=mark)
