"""The append-only journal of a target: JSON lines -> history. What a rerun after any crash reads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from azora_ci.clock import parse_rfc3339

DEPLOYING, PROMOTED, ABORTED, REMOVED = "deploying", "promoted", "aborted", "removed"


@dataclass
class Deployed:
    """One release in the history. ``previous`` is the release that served when it began; instances: number by service -> facts."""

    id: str
    version: str
    digests: dict[str, str]
    previous: str | None
    outcome: str = DEPLOYING
    reason: str | None = None
    percent: int = 0
    going_back: bool = False  # traffic was to be taken back, and whether that was finished is not known
    stages: list[dict[str, Any]] = field(default_factory=list)
    instances: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    started: int = 0  # instances ever started: their numbers are not used again
    promoted_at: str | None = None  # RFC 3339


@dataclass
class History:
    """What was deployed, by deployment id in order; ``serving`` is the release that was promoted last and not gone back from."""

    releases: dict[str, Deployed] = field(default_factory=dict)
    serving: str | None = None

    @property
    def unfinished(self) -> Deployed | None:
        """Return a release whose runner died, or is at it now: it began and was not promoted, or was on its way back."""
        return next((one for one in self.releases.values() if one.outcome == DEPLOYING or one.going_back), None)

    def before(self, release_id: str) -> Deployed | None:
        """Return the release that traffic goes back to from this one."""
        found = self.releases.get(release_id)
        if found is None or (found.outcome != PROMOTED and self.serving != release_id):
            return self.releases.get(self.serving) if self.serving else None
        return self.releases.get(found.previous) if found.previous else None

    def superseded(self, now: datetime, window_minutes: float) -> list[Deployed]:
        """Return the releases that nobody goes back to any more, oldest first.

        What serves, what a rollback of it goes back to, and what is under way stay; so does a release until the rollback window of
        the one that was promoted after it has closed.
        """
        target = self.before(self.serving) if self.serving else None
        kept = {self.serving, target.id if target else None}
        kept |= {one.previous for one in self.releases.values() if one.outcome == PROMOTED and not _closed(one, now, window_minutes)}
        settled = {PROMOTED, ABORTED}
        return [one for one in self.releases.values() if one.id not in kept and one.outcome in settled and not one.going_back]

    def apply(self, entry: Mapping[str, Any]) -> None:
        """Take one entry. Unknown events are passed over: a newer version may have written them."""
        name = entry["deployment_id"]
        event = entry["event"]
        if event == "begin":
            kept = self.releases.pop(name, None)
            self.releases[name] = Deployed(name, entry["version"], dict(entry["digests"]), entry["previous"])
            if kept:
                self.releases[name].started, self.releases[name].instances = kept.started, kept.instances
            return
        release = self.releases[name]
        if event == "instance":
            release.instances[entry["service"], entry["number"]] = dict(entry)
            release.started = max(release.started, entry["number"])
        elif event == "stopped":
            release.instances.pop((entry["service"], entry["number"]), None)
        elif event == "weight":
            release.percent = entry["percent"]
        elif event == "stage":
            release.stages.append(entry["stage"])
        elif event == "promote":
            release.outcome, self.serving, release.promoted_at = PROMOTED, name, entry.get("at")
        elif event == "going-back":
            release.going_back = True
        elif event == "abort":
            release.going_back = False
            if self.serving == name:
                self.serving = release.previous
            release.outcome, release.reason, release.percent, release.stages = ABORTED, entry["reason"], 0, []
        elif event == "removed":
            release.outcome = REMOVED


def _closed(release: Deployed, now: datetime, window_minutes: float) -> bool:
    if release.promoted_at is None:  # promoted before that was kept
        return True
    return parse_rfc3339(release.promoted_at) + timedelta(minutes=window_minutes) <= now


def merged(histories: Sequence[History]) -> History:
    """Return what several hosts' journals tell together, where they differ because one of them was out of reach.

    What was promoted anywhere is promoted; what is under way, or on its way back, anywhere is unfinished; a release that was taken
    back on one host and promoted on another is on its way back.
    """
    if len(histories) == 1:
        return histories[0]
    result = History()
    names = sorted({name for one in histories for name in one.releases}, key=lambda name: (int(name.partition("-")[0]), name))
    for name in names:
        result.releases[name] = _merged_release([one.releases[name] for one in histories if name in one.releases])
    serving = {one.serving for one in histories if one.serving is not None}
    wanted = [name for name in names if name in serving]
    firm = [name for name in wanted if result.releases[name].outcome == PROMOTED and not result.releases[name].going_back]
    result.serving = next(reversed(firm or wanted), None)
    return result


def _merged_release(found: list[Deployed]) -> Deployed:
    outcomes = {one.outcome for one in found}
    going_back = any(one.going_back for one in found) or outcomes >= {PROMOTED, ABORTED}
    order = (PROMOTED, DEPLOYING, ABORTED, REMOVED)
    chosen = min(found, key=lambda one: order.index(one.outcome))
    return replace(chosen, going_back=going_back)


def replay(lines: Iterable[str]) -> History:
    """Return the history that journal lines tell. A line that was cut when its writer died is passed over."""
    history = History()
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        history.apply(entry)
    return history


class Journal:
    """A journal file; every entry is on disk before the next thing is done."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def history(self) -> History:
        """Return the history; an absent file is an empty one."""
        try:
            return replay(self._path.read_text(encoding="utf-8").splitlines())
        except (FileNotFoundError, NotADirectoryError):
            return History()

    def add(self, at: str, event: str, deployment_id: str, **facts: Any) -> None:
        """Append an entry; ``at`` is RFC 3339."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"at": at, "event": event, "deployment_id": deployment_id, **facts}, ensure_ascii=False)
        with self._path.open("ab+") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # the last writer died in the middle of a line
                    file.write(b"\n")
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
