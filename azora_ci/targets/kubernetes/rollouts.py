"""What a Rollout's document says, whether its steps can be driven, and the patches that drive it. Pure.

The rules for trusting a status are those of argo-rollouts 1.10 (``utils/rollout``): its ``observedGeneration`` is a text, and a status
with ``controllerPause`` and no ``pauseConditions`` is one that somebody has just promoted.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from azora_ci.clients.kubernetes.objects import Document, annotation, member
from azora_ci.core.config import KubernetesSettings, RolloutNames
from azora_ci.core.documents import read_json
from azora_ci.core.pipeline import STAGES

FENCE, RELEASE, VERSION = "azora-ci/fence", "azora-ci/deployment-id", "azora-ci/version"  # annotations: of a Rollout; of its pods
METRIC = "runner-alive"  # by its name our metric is told from those of users beside it
HASH_LABEL = "rollouts-pod-template-hash"
EPHEMERAL = "rollout.argoproj.io/ephemeral-metadata"  # annotation of a ReplicaSet: what Argo added to its template, as JSON
SCALE_DOWN = "scale-down-deadline"  # annotation of an old ReplicaSet
PERCENTS = tuple(percent for _, percent in STAGES)
FEWEST_REVISIONS = 2  # what was before, and a release that was taken back since
SCALE_DOWN_SECONDS = 30  # Argo's default of scaleDownDelaySeconds


@dataclass(frozen=True)
class RolloutState:
    """A Rollout at one moment. ``settled``: its status belongs to its spec. ``weight``: percent of traffic of the pods of
    ``current``; None where nothing says it. ``release``: deployment id in the pods' annotations.
    """

    name: str
    settled: bool
    phase: str
    message: str
    stable: str
    current: str
    step: int
    held: bool  # in a pause without an end
    undecided: bool  # in a pause for an analysis without a verdict: a person decides
    aborted: bool  # the controller took it back
    weight: int | None
    routed: bool  # traffic is shared by a router, which must say the weight
    verified: bool  # what the controller wrote is what the router has, as far as that was asked
    release: str | None
    document: Document = field(repr=False, compare=False, default_factory=dict)

    @property
    def steps(self) -> Sequence[Document]:
        """Return the steps of its canary."""
        return member(self.document, "spec", "strategy", "canary", "steps") or ()

    @property
    def percent(self) -> int:
        """Return the weight that the steps up to the current one set."""
        weights = [step["setWeight"] for step in self.steps[: self.step + 1] if "setWeight" in step]
        return weights[-1] if weights else 0

    @property
    def finished(self) -> bool:
        """Return whether its newest template has everything, and no step is left."""
        return self.settled and self.phase == "Healthy" and bool(self.stable) and self.stable == self.current and not self.weight

    @property
    def background(self) -> str | None:
        """Return the name of the AnalysisRun that goes on beside its steps."""
        name: str | None = member(self.document, "status", "canary", "currentBackgroundAnalysisRunStatus", "name")
        return name

    @property
    def free(self) -> bool:
        """Return whether it waits for us, and for nobody else."""
        return self.settled and self.held and not self.undecided

    @property
    def analysing(self) -> bool:
        """Return whether it is in a step that is an analysis, which measures still."""
        inline = self.step < len(self.steps) and "analysis" in self.steps[self.step]
        return inline and self.settled and self.phase == "Progressing"

    def waits_at(self, percent: int) -> bool:
        """Return whether it waits in the pause of this weight. Argo keeps traffic away from pods that are lost meanwhile: it may be 0."""
        return self.settled and self.held and self.percent == percent

    def held_at(self, percent: int) -> bool:
        """Return whether it waits at this weight, which traffic has where it is routed."""
        return self.waits_at(percent) and self.reads(percent)

    def reads(self, percent: int) -> bool:
        """Return whether the weight reads this much where traffic is routed. A weight that is missing was not read."""
        return not self.routed or (self.weight == percent and self.verified)

    @property
    def safe(self) -> bool:
        """Return whether its status sends no traffic to pods of another template than the stable one's.

        Without routing, pods that are still ready get requests all the same: they must be counted.
        """
        return (self.finished or self.aborted) and self.reads(0)

    @property
    def owed(self) -> bool:
        """Return whether the controller has something to do that it does at once when it runs."""
        status = self.document.get("status") or {}
        return not self.settled or (bool(status.get("abort")) and not status.get("abortedAt"))

    @property
    def text(self) -> str:
        """Return a phrase about it for people."""
        weight = "" if self.weight is None else f", {self.weight} % of traffic to {self.current}"
        return f"{self.name}: {self.phase or 'no status yet'} at step {self.step}{weight}{f' ({self.message})' if self.message else ''}"


def state(document: Document) -> RolloutState:
    """Return what a Rollout's document says."""
    status, meta = document.get("status") or {}, document["metadata"]
    weights = member(status, "canary", "weights") or {}
    pauses = status.get("pauseConditions") or []
    reasons = {pause.get("reason") for pause in pauses}
    observed = str(meta.get("generation")) == str(status.get("observedGeneration"))
    return RolloutState(
        name=meta["name"],
        settled=observed and not (status.get("controllerPause") and not pauses),
        phase=status.get("phase", ""),
        message=status.get("message", ""),
        stable=status.get("stableRS", ""),
        current=status.get("currentPodHash", ""),
        step=status.get("currentStepIndex") or 0,
        held="CanaryPauseStep" in reasons,
        undecided="InconclusiveAnalysisRun" in reasons,
        aborted=bool(status.get("abort") and status.get("abortedAt")),
        weight=member(weights, "canary", "weight"),
        routed=bool(member(document, "spec", "strategy", "canary", "stableService")),
        verified=weights.get("verified") is not False,
        release=member(document, "spec", "template", "metadata", "annotations", RELEASE),
        document=document,
    )


# --- the plan ------------------------------------------------------------------------------------------------------------------


def obstacles(document: Document, names: RolloutNames, settings: KubernetesSettings) -> Iterator[str]:
    """Yield a sentence for each reason why a Rollout cannot be driven."""
    canary = member(document, "spec", "strategy", "canary")
    if canary is None:
        yield f"{names.rollout}: its strategy is not canary, so there are no shares to move"
        return
    if member(document, "spec", "workloadRef"):
        yield f"{names.rollout}: spec.workloadRef keeps its pods' template elsewhere; move the template into the Rollout"
    elif container_index(document, names.container) is None:
        found = ", ".join(each["name"] for each in member(document, "spec", "template", "spec", "containers") or ())
        yield f"{names.rollout}: has no container {names.container}, but {found or 'none'}"
    for key, expected in (("stableService", names.stable_service), ("canaryService", names.canary_service)):
        if canary.get(key) != expected:
            yield f"{names.rollout}: spec.strategy.canary.{key} is {canary.get(key)}, target.kubernetes says {expected}"
    if names.stable_service and not canary.get("trafficRouting"):
        yield f"{names.rollout}: spec.strategy.canary.trafficRouting is missing: its Services get no shares; leave both out"
    if (most := member(canary, "trafficRouting", "maxTrafficWeight")) not in {None, 100}:
        yield f"{names.rollout}: trafficRouting.maxTrafficWeight is {most}: our percents would be parts of that; leave it out"
    if canary.get("antiAffinity"):
        yield f"{names.rollout}: spec.strategy.canary.antiAffinity changes what would be put back after a release; leave it out"
    yield from _step_obstacles(names.rollout, canary.get("steps") or [])
    if member(document, "spec", "paused"):
        yield f"{names.rollout}: spec.paused is true: somebody stopped it"
    if member(document, "spec", "revisionHistoryLimit") == 0:
        yield f"{names.rollout}: spec.revisionHistoryLimit is 0: nothing would be left to go back to"
    if not has_watch(document, settings):
        yield (
            f"{names.rollout}: spec.strategy.canary.analysis does not name {watch_name(settings)}, so nothing would take a release back "
            "when its run dies; python -m azora_ci edge install adds it"
        )
    if is_dry(member(canary, "analysis")):
        yield f"{names.rollout}: spec.strategy.canary.analysis.dryRun covers the metric {METRIC}: nothing would take a release back"


def _step_obstacles(name: str, steps: Sequence[Document]) -> Iterator[str]:
    weight, paused = 0, []
    for number, step in enumerate(steps):
        weight = step.get("setWeight", weight)
        if "pause" in step:
            if (step["pause"] or {}).get("duration") is not None:
                yield f"{name}: step {number} is a pause that ends by itself, whatever our verdict; write pause: {{}}"
            paused.append(weight)
    if tuple(paused) != PERCENTS:
        wanted = ", ".join(f"setWeight: {percent}, pause: {{}}" for percent in PERCENTS)
        yield f"{name}: its steps pause at {', '.join(f'{each} %' for each in paused) or 'no weight'}; our stages need {wanted}"


def remarks(document: Document, names: RolloutNames, window_minutes: float) -> Iterator[str]:
    """Yield what people should know of a Rollout that can be driven."""
    canary = member(document, "spec", "strategy", "canary") or {}
    others = sorted({key for step in canary.get("steps") or () for key in step} - {"setWeight", "pause"})
    if others:
        yield f"{names.rollout}: its steps also have {', '.join(others)}, which Argo takes by itself between ours"
    if analyses := [each.get("templateName") for each in member(canary, "analysis", "templates") or ()][1:]:
        yield f"{names.rollout}: its own analysis ({', '.join(map(str, analyses))}) may take it back, too"
    if not names.stable_service:
        yield f"{names.rollout}: traffic is not routed: shares are those of its {member(document, 'spec', 'replicas')} pods, rounded up"
    kept = canary.get("scaleDownDelaySeconds", SCALE_DOWN_SECONDS) if names.stable_service else 0
    if kept < window_minutes * 60:
        change = f"write scaleDownDelaySeconds: {window_minutes * 60:.0f} to have it warm all the while"
        yield (
            f"{names.rollout}: the version before runs for {kept} s after the promotion; going back later, within the window of "
            f"{window_minutes:g} minutes, first starts it again from its ReplicaSet; "
            f"{change if names.stable_service else 'without trafficRouting nothing keeps it warm'}"
        )
    history = member(document, "spec", "revisionHistoryLimit")
    if history is not None and history < FEWEST_REVISIONS:
        yield (
            f"{names.rollout}: revisionHistoryLimit is {history}: one release that is taken back, and there is nothing left to go back to "
            f"from what serves; write revisionHistoryLimit: {FEWEST_REVISIONS} or more"
        )
    if canary.get("dynamicStableScale"):
        yield f"{names.rollout}: dynamicStableScale stops pods of the version before while shares move: going back starts them again"


def runs_until(replica_set: Document, document: Document, now: datetime) -> str:
    """Return until when (RFC 3339) the pods of an old ReplicaSet of a Rollout run on; the controller notes it a moment after promoting."""
    noted: str | None = member(replica_set, "metadata", "annotations", SCALE_DOWN)
    stopped = not member(replica_set, "spec", "replicas") or not member(document, "spec", "strategy", "canary", "trafficRouting")
    delay = member(document, "spec", "strategy", "canary", "scaleDownDelaySeconds")
    seconds = 0 if stopped else SCALE_DOWN_SECONDS if delay is None else delay
    return noted if noted and not stopped else (now + timedelta(seconds=seconds)).isoformat(timespec="seconds").replace("+00:00", "Z")


def container_index(document: Document, container: str) -> int | None:
    """Return the place of a container in a Rollout's template, None where there is none of this name."""
    containers = member(document, "spec", "template", "spec", "containers") or ()
    return next((index for index, each in enumerate(containers) if each.get("name") == container), None)


def watch_name(settings: KubernetesSettings) -> str:
    """Return the name of the AnalysisTemplate that takes a dead runner's release back."""
    return f"{settings.name}-runner-alive"


def has_watch(document: Document, settings: KubernetesSettings) -> bool:
    """Return whether a Rollout is taken back when the lease runs out, from its first step on."""
    analysis = member(document, "spec", "strategy", "canary", "analysis") or {}
    named = [each.get("templateName") for each in analysis.get("templates") or () if not each.get("clusterScope")]
    return watch_name(settings) in named and not analysis.get("startingStep")


def is_dry(analysis: Document | None) -> bool:
    """Return whether an analysis, or the spec of its run, only pretends to measure our metric: dryRun has patterns, found anywhere."""
    for each in (analysis or {}).get("dryRun") or ():
        try:
            if re.search(each["metricName"], METRIC):
                return True
        except re.error:  # the controller's patterns are those of Go, of which Python reads most
            return True
    return False


# --- patches -------------------------------------------------------------------------------------------------------------------


# A state and the lock's token -> the patch that is to be made of that state, None when nothing is to be changed any more.
Change = Callable[[RolloutState, str], Sequence[Document] | None]


def stamped(document: Document, token: str) -> list[Document]:
    """Return the patch that writes the lock's token on an object, where that has the token still with which it was seen."""
    annotations = member(document, "metadata", "annotations")
    if annotations is not None and FENCE in annotations:
        return [_if_fenced(annotations[FENCE]), {"op": "replace", "path": annotation(FENCE), "value": token}]
    if annotations is None:
        return [unchanged(document), {"op": "add", "path": "/metadata/annotations", "value": {FENCE: token}}]
    return [unchanged(document), {"op": "add", "path": annotation(FENCE), "value": token}]


def unchanged(document: Document) -> Document:
    """Return the condition that an object is as it was read.

    Its version is compared, and not its texts: the API server compares JSON as it is written, and writes ``<``, ``>`` and ``&`` as escapes.
    """
    return {"op": "test", "path": "/metadata/resourceVersion", "value": document["metadata"]["resourceVersion"]}


def _same_spec(document: Document) -> Document:
    """Return the condition that nobody has changed the spec since it was read; for its texts see ``unchanged``."""
    return {"op": "test", "path": "/metadata/generation", "value": document["metadata"]["generation"]}


def _if_fenced(token: str) -> Document:
    """Return the condition that the lock is still ours: the API server checks it in the same moment as it makes the change."""
    return {"op": "test", "path": annotation(FENCE), "value": token}


def start(document: Document, token: str, container: int, image: str, given: Mapping[str, str]) -> list[Document]:
    """Return the patch that gives a Rollout a release. ``given``: DEPLOYMENT_ID, SERVICE and VERSION.

    The annotations make a template of its own even of an image that did not change, so that all services move together.
    """
    base = f"/spec/template/spec/containers/{container}"
    template = document["spec"]["template"]
    annotations = {**(member(template, "metadata", "annotations") or {}), RELEASE: given["DEPLOYMENT_ID"], VERSION: given["VERSION"]}
    env = [each for each in template["spec"]["containers"][container].get("env") or () if each["name"] not in given]
    return [
        _if_fenced(token),
        _same_spec(document),
        {"op": "replace", "path": f"{base}/image", "value": image},
        {"op": "add", "path": f"{base}/env", "value": [*env, *({"name": name, "value": value} for name, value in given.items())]},
        {"op": "add", "path": "/spec/template/metadata/annotations", "value": annotations},
    ]


def go_on(seen: RolloutState, token: str) -> list[Document]:
    """Return the patch of the status that ends the pause in which a Rollout was seen, and no other one."""
    return [
        _if_fenced(token),
        {"op": "test", "path": "/status/currentPodHash", "value": seen.current},
        {"op": "test", "path": "/status/currentStepIndex", "value": seen.step},
        {"op": "test", "path": "/status/pauseConditions", "value": seen.document["status"]["pauseConditions"]},
        {"op": "remove", "path": "/status/pauseConditions"},
    ]


def going_on(seen: RolloutState) -> Change:
    """Return the change that ends the pause in which a Rollout was seen, where nothing else has happened since."""

    def change(now: RolloutState, token: str) -> Sequence[Document] | None:
        same = now.current == seen.current and now.step == seen.step and now.release == seen.release
        return go_on(now, token) if same and now.free else None

    return change


def take_back(seen: RolloutState, token: str) -> list[Document]:
    """Return the patch of the status that gives all traffic back to the stable pods."""
    same = {"op": "test", "path": "/status/currentPodHash", "value": seen.current}
    return [_if_fenced(token), same, {"op": "add", "path": "/status/abort", "value": True}]


def skip_steps(seen: RolloutState, token: str) -> list[Document]:
    """Return the patch of the status that goes to the newest template at once."""
    same = {"op": "test", "path": "/status/currentPodHash", "value": seen.current}
    return [_if_fenced(token), same, {"op": "add", "path": "/status/promoteFull", "value": True}]


def put_template(document: Document, token: str, replica_set: Document) -> list[Document]:
    """Return the patch that gives a Rollout the template of one of its ReplicaSets."""
    return [
        _if_fenced(token),
        _same_spec(document),
        {"op": "replace", "path": "/spec/template", "value": _without_injected(replica_set)},
    ]


def _without_injected(replica_set: Document) -> Document:
    """Return a ReplicaSet's template as the Rollout had it; else Argo finds no equal ReplicaSet, and starts a new canary.

    Argo adds the hash, the labels and annotations of stableMetadata or canaryMetadata, which it notes (``FindNewReplicaSet``);
    what ``antiAffinity`` adds cannot be told apart so, and is an obstacle.
    """
    template: Document = copy.deepcopy(replica_set["spec"]["template"])
    injected: Document = read_json(member(replica_set, "metadata", "annotations", EPHEMERAL) or "{}")
    for kind, names in (("labels", {HASH_LABEL, *(injected.get("labels") or {})}), ("annotations", {*(injected.get("annotations") or {})})):
        for name in names & (template["metadata"].get(kind) or {}).keys():
            del template["metadata"][kind][name]
    return template
