"""What others do to Rollouts meanwhile: a controller that falls silent, analyses of users, and people.

Argo puts our watch over the runner and the analysis of the user's own templates into one AnalysisRun; the metric's name tells them apart.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from azora_ci.clients.kubernetes.api import Api
from azora_ci.clients.kubernetes.objects import Document, member
from azora_ci.core.clock import Clock, parse_rfc3339
from azora_ci.core.errors import AzoraError, NotTrueError, UnreachableError
from azora_ci.targets.kubernetes.cluster import Names
from azora_ci.targets.kubernetes.manifests import HEARTBEAT_SECONDS, watch
from azora_ci.targets.kubernetes.rollouts import HASH_LABEL, METRIC, RolloutState, is_dry
from azora_ci.targets.release import Release

LATE_SECONDS = 4.0  # a look of the controller at the lease may come, until it counts as down
PULSE_SECONDS = 2.0  # between two of our looks at it: in all less than the 10 s in which it is to be noticed
RETRY_SECONDS = 10.0  # after which Argo measures again what it could not measure (analysis.DefaultErrorRetryInterval)
UNDER_WAY, NEGATIVE = frozenset({None, "", "Pending", "Running"}), frozenset({"Failed", "Error"})


@dataclass(frozen=True)
class Measured:
    """What an AnalysisRun says of one metric."""

    run: str
    metric: str
    phase: str
    detail: str

    @property
    def ours(self) -> bool:
        """Return whether this is the watch over the runner."""
        return self.metric == METRIC

    @property
    def text(self) -> str:
        """Return a phrase about it for people."""
        return f"AnalysisRun {self.run}: metric {self.metric} is {self.phase}{f' ({self.detail})' if self.detail else ''}"


def measured(run: Document) -> list[Measured]:
    """Return what a run says of each metric, those that decided against the release first; a run that measured nothing says why. Pure."""
    name, status = run["metadata"]["name"], run.get("status") or {}
    found = []
    for result in status.get("metricResults") or ():
        last = (result.get("measurements") or [{}])[-1]
        decided = status.get("message") if result.get("phase") == status.get("phase") != "Running" else None
        value = f"last value {last['value'][:200]}" if last.get("value") else None
        count = f"{result['count']} measurements" if result.get("count") else None
        detail = "; ".join(filter(None, (decided, result.get("message") or last.get("message"), value, count)))
        found.append(Measured(name, result["name"], result.get("phase") or "Pending", detail))
    if not found and status.get("phase") in NEGATIVE:
        return [Measured(name, "(none measured)", status["phase"], status.get("message", ""))]
    return sorted(found, key=lambda each: each.phase not in NEGATIVE)


class Others:
    """Reads what others do to the Rollouts of a namespace."""

    def __init__(self, api: Api, names: Names, clock: Clock, say: Callable[[str], None]) -> None:
        self._api, self._names, self._clock, self._say = api, names, clock, say
        self.watched: str | None = None  # an AnalysisRun that reads the lease

    def runs(self, hashes: Collection[str]) -> list[Document]:
        """Return the AnalysisRuns of templates of our Rollouts, the newest first."""
        own = {entry.rollout for entry in self._names.settings.rollouts.values()}
        items = self._list(labelSelector=f"{HASH_LABEL} in ({','.join(sorted(hashes))})")
        owned = [each for each in items if own & {owner["name"] for owner in each["metadata"].get("ownerReferences") or ()}]
        return sorted(owned, key=lambda each: str(each["metadata"]["creationTimestamp"]), reverse=True)

    def _list(self, **selector: str) -> list[Document]:
        found: list[Document] = self._api.get(self._names.group("argoproj.io/v1alpha1", "analysisruns"), **selector)["items"]
        return found

    def analyses(self, hashes: Collection[str]) -> list[Measured]:
        """Return what the user's own metrics say of templates."""
        return [each for run in self.runs(hashes) for each in measured(run) if not each.ours] if hashes else []

    def require_watch(self, states: Iterable[RolloutState]) -> None:
        """Raise NotTrueError where an analysis that goes on beside the steps does not watch over the runner as the settings say.

        Argo joins what every template of a Rollout says, and copies it into the run: that is what counts.
        """
        expected = [_judged(each) for each in watch(self._names)["spec"]["metrics"]]
        under_way = {seen.background: seen for seen in states if seen.background}
        for run in self.runs([seen.current for seen in under_way.values()]) if under_way else ():
            name, spec = run["metadata"]["name"], run["spec"]
            if name not in under_way or (
                [_judged(each) for each in spec["metrics"] if each["name"] == METRIC] == expected and not is_dry(spec)
            ):
                continue
            raise NotTrueError(
                "The watch over the runner is another one",
                what=f"AnalysisRun {name} would not take the release back when this run dies: its metric {METRIC} is only pretended "
                "(dryRun), or not that of target.kubernetes",
                where=f"{self._names.settings.namespace}/{under_way[name].name}",
                next_step="run python -m azora_ci edge install, which writes the AnalysisTemplate again, and take out dryRun; then re-run",
            )

    # --- the controller ------------------------------------------------------------------------------------------------

    def silence(self) -> UnreachableError | None:
        """Return the error about a controller that has not looked at the lease in time, although a release is under way.

        One controller drives all Rollouts, so one AnalysisRun tells of it, which costs the API server little.
        """
        for run in self._list(fieldSelector=f"metadata.name={self.watched}") if self.watched else ():
            if member(run, "status", "phase") in UNDER_WAY and (due := _next_look(run)) is not None:
                late = (self._api.now() - due).total_seconds()
                if late > LATE_SECONDS:
                    return silent(f"AnalysisRun {self.watched}", late + HEARTBEAT_SECONDS)
        return None

    @contextmanager
    def pulse(self) -> Iterator[None]:
        """Say when the controller falls silent, and when it is back, as soon as that is seen."""
        ended = threading.Event()
        thread = threading.Thread(target=self._follow, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(PULSE_SECONDS)

    def _follow(self, ended: threading.Event) -> None:
        down = False
        while not self._clock.wait(ended, PULSE_SECONDS):
            with suppress(AzoraError):  # an API server that does not answer is the lock's to notice
                error = self.silence()
                if error is not None and not down:
                    self._say(f"✗ {error.title}: {error.what}")
                elif error is None and down:
                    self._say("✓ the Argo Rollouts controller runs again")
                down = error is not None

    # --- people and analyses -------------------------------------------------------------------------------------------

    def require_ours(self, release: Release, seen: RolloutState) -> None:
        """Raise NotTrueError when a Rollout has another template by now, was taken back in the cluster, or cannot go on."""
        status = seen.document.get("status") or {}
        if seen.release != release.id:
            raise self.changed(seen, f"its template is of {seen.release or 'no deployment of ours'} now: {seen.text}")
        if status.get("abort"):
            title, detail = self._taken_back(seen)
        elif seen.settled and seen.phase == "Degraded":
            title, detail = "A Rollout is degraded", seen.text
        else:
            return
        raise self._error(seen, title, f"{seen.name}: {detail}")

    def changed(self, seen: RolloutState, detail: str) -> NotTrueError:
        """Return the error about a Rollout that has somebody else's template."""
        return self._error(seen, "Somebody changed a Rollout", f"{seen.name}: {detail}")

    def _taken_back(self, seen: RolloutState) -> tuple[str, str]:
        for run in self.runs([seen.current]):
            reason = member(run, "status", "message")
            # An earlier attempt with the same template has left its runs: only the one that the Rollout itself names decided.
            if member(run, "status", "phase") in NEGATIVE and reason and reason in seen.message and (decided := measured(run)):
                if decided[0].ours:
                    return (
                        "The watch over the runner took a Rollout back",
                        f"the lease of this run was not renewed in time: {decided[0].text}",
                    )
                return "An analysis took a Rollout back", f"{decided[0].text}; it is not azora-ci's own"
        return "A Rollout was taken back in the cluster", f"by a person, or Argo Rollouts: {seen.text}"

    def moved(self, seen: RolloutState, percent: int) -> NotTrueError:
        """Return the error about a Rollout that is not where it was left."""
        return self._error(seen, "Somebody moved a Rollout", f"it was left waiting at {percent} %, and is not there any more: {seen.text}")

    def _error(self, seen: RolloutState, title: str, what: str) -> NotTrueError:
        return NotTrueError(
            title,
            what=what,
            where=f"{self._names.settings.namespace}/{seen.name}",
            next_step="find out who did it and why (kubectl describe rollout, analysisruns); all services go back together",
        )


def _judged(metric: Document) -> tuple[object, ...]:
    """Return what decides when a metric takes a release back."""
    names = ("interval", "failureLimit", "consecutiveErrorLimit", "initialDelay", "count", "successCondition", "failureCondition")
    return (*(metric.get(name) for name in names), *(member(metric, "provider", "web", name) for name in ("url", "jsonPath")))


def _next_look(run: Document) -> datetime | None:
    """Return when the controller is to look at the lease again; None for a run that does not watch it."""
    results = {result["name"]: result for result in member(run, "status", "metricResults") or ()}
    if METRIC not in {metric["name"] for metric in run["spec"]["metrics"]}:
        return None
    last = (results.get(METRIC, {}).get("measurements") or [{}])[-1]
    wait = RETRY_SECONDS if last.get("phase") == "Error" else HEARTBEAT_SECONDS
    return parse_rfc3339(last.get("finishedAt") or run["metadata"]["creationTimestamp"]) + timedelta(seconds=wait)


def silent(what: str, seconds: float) -> UnreachableError:
    """Return the error about a controller that does nothing."""
    return UnreachableError(
        "The Argo Rollouts controller does nothing",
        what=f"{what}: nothing was done about it for {seconds:.0f} s. Traffic stays as it is until the controller runs again",
        where="the cluster's Argo Rollouts controller",
        next_step="have the controller run (kubectl -n argo-rollouts get pods) and re-run the job; what was asked of it last happens then",
    )
