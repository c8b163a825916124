"""What is seen of a worker, whose process nobody sends requests to -> verdict. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from azora_ci.health.answers import Endpoint, ProbeResult

# Outcomes of ProbeResult beside those of answers.
HEALTHY, ENDED, RESTARTED, UNHEALTHY, STARTING = "healthy", "ended", "restarted", "unhealthy", "starting"


@dataclass(frozen=True)
class WorkerState:
    """Whether a worker's process runs, how often it was started again since its start, and what its HEALTHCHECK says.

    ``health``: HEALTHY, UNHEALTHY, STARTING, or "" without a HEALTHCHECK; ``detail``: how the process ended, or the check's output;
    ``gone``: nothing is left from which it could be started again.
    """

    running: bool
    restarts: int = 0
    health: str = ""
    detail: str = ""
    gone: bool = False


def classify(endpoint: Endpoint, state: WorkerState, restarts: int = 0) -> ProbeResult:
    """Return the finding of a state. ``restarts``: how many of its restarts are none of this rollout's business."""
    outcome, detail = _judge(state, state.restarts - restarts)
    return ProbeResult(endpoint, outcome, detail, 0.0)


def _judge(state: WorkerState, restarts: int) -> tuple[str, str]:
    again = f"was started again {restarts} times, because it ends" if restarts > 0 else ""
    if not state.running:
        return ENDED, ", ".join(filter(None, ("does not run", state.detail, again)))
    if restarts > 0:
        return RESTARTED, again
    if state.health == UNHEALTHY:
        return UNHEALTHY, f"its HEALTHCHECK says unhealthy: {state.detail or '(no output)'}"
    if state.health == STARTING:
        return STARTING, "its HEALTHCHECK has not said healthy yet"
    return HEALTHY, "runs, its HEALTHCHECK says healthy" if state.health else "runs"
