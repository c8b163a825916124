"""The text of ``edge log``: what went wrong, counted by reason and version, then a line for each of the latest requests. Pure."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

from azora_ci.cli.edge.report import table
from azora_ci.core.actions import harmless
from azora_ci.health.failures import Failure
from azora_ci.targets.base import Instance
from azora_ci.targets.journal import History

SHOWN = 100  # requests
HEAD = ("time (UTC)", "version", "instance", "request", "status", "ms", "tries", "of", "why")
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def moment(text: str, now: datetime) -> datetime:
    """Return the moment that ``15m``, ``2h``, ``1d`` or ``2026-11-24T11:03`` (UTC) names. Raises ValueError and OverflowError."""
    if span := re.fullmatch(r"(\d{1,6})([smhd])", text):
        return now - timedelta(**{UNITS[span[2]]: int(span[1])})
    named = datetime.fromisoformat(text)
    return named if named.tzinfo else named.replace(tzinfo=UTC)


def chosen(failures: Iterable[Failure], history: History, *, host: str | None, release: str | None) -> list[Failure]:
    """Return the failures at a host, and of a release by its deployment id or version; None: of any."""
    return [
        failure
        for failure in failures
        if host in {None, failure.host} and release in {None, failure.release, version_of(failure.release, history)}
    ]


def version_of(release: str, history: History) -> str:
    """Return the version of a release that the journal knows, else its id; – where no release was chosen."""
    return history.releases[release].version if release in history.releases else release or "–"


def lines_of_json(failures: Iterable[Failure], history: History) -> str:
    """Return a JSON object for each failure, one in a line."""
    return "\n".join(json.dumps({**asdict(failure), "version": version_of(failure.release, history)}) for failure in failures)


def text(failures: Sequence[Failure], history: History, instances: Mapping[str, Sequence[Instance]], since: str) -> str:
    """Return the whole text. ``instances``: deployment id -> its instances that were started and not stopped."""
    if not failures:
        return f"Nothing went wrong at the edge since {since}, by its log."
    reasons = Counter(failure.reason for failure in failures)
    versions = Counter(f"{failure.service} {version_of(failure.release, history)}" for failure in failures)
    parts = [f"{len(failures)} requests went wrong since {since}."]
    parts += [f"  {_listed(counts)}" for counts in (reasons, versions)]
    if len(failures) > SHOWN:
        parts.append(f"The latest {SHOWN}:")
    names = {(each.address, each.host): f"{each.service}#{each.number}" for group in instances.values() for each in group}
    rows = [_row(failure, history, names) for failure in failures[-SHOWN:]]
    return harmless("\n".join([*parts, "", table([HEAD, *rows])]))


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.most_common())


def _row(failure: Failure, history: History, names: Mapping[tuple[str, str], str]) -> tuple[str, ...]:
    instance = names.get((failure.instance, failure.host)) or failure.instance or "–"
    where = f"{instance} on {failure.host}" if failure.host else instance
    request = f"{failure.method} {failure.path}"
    version, took = version_of(failure.release, history), str(failure.milliseconds)
    return failure.time, version, where, request, str(failure.status or "–"), took, str(failure.attempts), failure.kind, failure.words
