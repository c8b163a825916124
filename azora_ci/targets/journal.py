"""The append-only journal of a target: JSON lines -> history. A rerun after a crash reads it to know what was done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from azora_ci.core.clock import parse_rfc3339
from azora_ci.core.documents import UnreadableError, expected_shape, read_json
from azora_ci.core.errors import BadInputError
from azora_ci.targets.release import Release

PLAIN = {"weight": ("percent",), "kept": ("gone", "warm_until")}  # event -> what it says of its release, by the same names
DEPLOYING, PROMOTED, ABORTED, REMOVED = "deploying", "promoted", "aborted", "removed"


@dataclass
class Deployed:
    """One release in the history. ``previous``: the release that served when this one began; ``instances``: (service, number) -> facts.

    ``jobs``: service id -> last journal entry about it, see ``jobs.Jobs``.
    """

    id: str
    version: str
    digests: dict[str, str]
    previous: str | None
    outcome: str = DEPLOYING
    reason: str | None = None
    percent: int = 0
    going_back: bool = False  # taking traffic back has begun, and may not be finished
    stages: list[dict[str, Any]] = field(default_factory=list)
    instances: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    started: int = 0  # highest number of an instance so far: numbers are not used again
    began_at: str | None = None  # RFC 3339, of the first of its runs
    promoted_at: str | None = None  # RFC 3339
    gone: bool = False  # there is nothing of it left to go back to
    warm_until: str | None = None  # RFC 3339, of what was before: until when it runs on; None: as long as it is kept
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def release(self) -> Release:
        """Return the release as it was deployed, without the sizes of its images."""
        return Release(self.id, self.version, self.digests)

    @property
    def has_only_jobs(self) -> bool:
        """Return whether nothing of the release was begun but its jobs: a run can go on from there."""
        return bool(self.jobs) and not (self.going_back or self.instances or self.percent) and self.outcome == DEPLOYING


@dataclass
class History:
    """All releases by deployment id, in order. ``serving`` is the release that was promoted last and not taken back since."""

    releases: dict[str, Deployed] = field(default_factory=dict)
    serving: str | None = None

    @property
    def unfinished(self) -> Deployed | None:
        """Return a release that is under way or whose runner died: it was not promoted, or was being taken back; None without one."""
        return next((release for release in self.releases.values() if release.outcome == DEPLOYING or release.going_back), None)

    def before(self, release_id: str) -> Deployed | None:
        """Return the release that traffic goes back to when this one is taken back, or None."""
        release = self.releases.get(release_id)
        if release is None or (release.outcome != PROMOTED and self.serving != release_id):
            return self.releases.get(self.serving) if self.serving else None
        return self.releases.get(release.previous) if release.previous else None

    def superseded(self, now: datetime, window_minutes: float) -> list[Deployed]:
        """Return the releases that no rollback goes back to any more, oldest first.

        The serving release, the target of its rollback, and unfinished releases are not among them. Neither is a release while the rollback
        window of the release that was promoted after it is open.
        """
        target = self.before(self.serving) if self.serving else None
        kept = {self.serving, target.id if target else None}
        promoted = [release for release in self.releases.values() if release.outcome == PROMOTED]
        kept |= {release.previous for release in promoted if not _is_window_closed(release, now, window_minutes)}
        settled = [release for release in self.releases.values() if release.outcome in {PROMOTED, ABORTED} and not release.going_back]
        return [release for release in settled if release.id not in kept]

    def apply(self, entry: Mapping[str, Any]) -> None:
        """Apply one journal entry. Unknown events are ignored: a newer version may have written them."""
        name = entry["deployment_id"]
        event = entry["event"]
        if event == "begin":
            # What ran goes on, and what was done once is not done again.
            earlier = self.releases.pop(name, None)
            kept = {key: getattr(earlier, key) for key in ("started", "instances", "jobs", "began_at")} if earlier else {}
            kept["began_at"] = kept.get("began_at") or entry.get("at")
            self.releases[name] = Deployed(name, entry["version"], dict(entry["digests"]), entry["previous"], **kept)
            return
        release = self.releases[name]
        if event in {"instance", "resume"}:
            release.instances[entry["service"], entry["number"]] = dict(entry)
            release.started = max(release.started, entry["number"])
        elif event == "stopped":
            release.instances.pop((entry["service"], entry["number"]), None)
        elif event == "rest" and (entry["service"], entry["number"]) in release.instances:
            release.instances[entry["service"], entry["number"]]["resting"] = True
        elif event == "job":
            release.jobs[entry["service"]] = dict(entry)
        elif event in PLAIN:
            vars(release).update({key: entry[key] for key in PLAIN[event]})
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


def _is_window_closed(release: Deployed, now: datetime, window_minutes: float) -> bool:
    if release.promoted_at is None:  # promoted by a version that did not note the time yet
        return True
    return parse_rfc3339(release.promoted_at) + timedelta(minutes=window_minutes) <= now


def merged(histories: Sequence[History]) -> History:
    """Return the history that several hosts' journals add up to. They differ when a host was out of reach.

    A release that was promoted on any host is promoted. One that is under way or being taken back on any host is unfinished. One that
    was taken back on one host and promoted on another is being taken back.
    """
    if len(histories) == 1:
        return histories[0]
    result = History()
    names = sorted({name for history in histories for name in history.releases}, key=lambda name: (int(name.partition("-")[0]), name))
    for name in names:
        result.releases[name] = _merged_release([history.releases[name] for history in histories if name in history.releases])
    serving = {history.serving for history in histories if history.serving is not None}
    candidates = [name for name in names if name in serving]
    promoted = [name for name in candidates if result.releases[name].outcome == PROMOTED and not result.releases[name].going_back]
    result.serving = next(reversed(promoted or candidates), None)
    return result


def _merged_release(releases: list[Deployed]) -> Deployed:
    outcomes = {release.outcome for release in releases}
    going_back = any(release.going_back for release in releases) or outcomes >= {PROMOTED, ABORTED}
    order = (PROMOTED, DEPLOYING, ABORTED, REMOVED)
    chosen = min(releases, key=lambda release: (order.index(release.outcome), -release.percent, not release.instances))
    jobs = {service: entry for release in releases for service, entry in release.jobs.items()}  # each is on one host only
    return replace(chosen, going_back=going_back, jobs=jobs)


def lines_of(text: str) -> list[str]:
    """Return the lines of a journal. ``str.splitlines`` would cut an entry at characters that JSON leaves as they are, such as U+2028."""
    return [line for line in text.split("\n") if line]


def replay(lines: Iterable[str]) -> History:
    """Return the history that journal lines add up to. A line that was cut when its writer died is ignored."""
    history = History()
    for line in lines:
        try:
            entry = read_json(line)
        except UnreadableError:
            continue
        history.apply(entry)
    return history


class Journal:
    """A journal file. Every entry is on disk before the runner goes on."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def history(self) -> History:
        """Return the history; that of an absent file is empty."""
        try:
            lines = lines_of(self._path.read_text(encoding="utf-8", errors="replace"))
        except (FileNotFoundError, NotADirectoryError):
            return History()
        with expected_shape(self._unreadable):
            return replay(lines)

    def _unreadable(self, problem: str) -> BadInputError:
        return BadInputError(
            "The journal cannot be read",
            what=f"an entry has another shape: {problem}",
            where=str(self._path),
            next_step="find out who wrote it; without its journal nothing is known of the releases of this target",
        )

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
