"""How long the stages of a rollout are to last."""

from __future__ import annotations

from dataclasses import dataclass

from azora_ci.core.errors import BadInputError
from azora_ci.core.variables import number, variable

SHORTEST_MINUTES = 1.0  # shortest stage in production; shorter ones need SHORT_STAGES_REASON


@dataclass(frozen=True, kw_only=True)
class Stages:
    """How long the stages are to last."""

    canary_minutes: float = variable("CANARY_MINUTES", "minutes at 5 %, fractions allowed", example="5", parse=number(0, 1440), default="5")
    progressive_minutes: float = variable(
        "PROGRESSIVE_MINUTES", "minutes at 50 %, fractions allowed", example="10", parse=number(0, 1440), default="10"
    )
    full_minutes: float = variable("FULL_MINUTES", "minutes at 100 %, fractions allowed", example="15", parse=number(0, 1440), default="15")
    short_stages_reason: str | None = variable(
        "SHORT_STAGES_REASON", "why stages under a minute are right in production; lands in the record", example="rehearsal", required=False
    )

    def durations(self, environment: str) -> tuple[float, float, float]:
        """Return the minutes of the stages. Raises BadInputError for short ones in production without a reason."""
        minutes = (self.canary_minutes, self.progressive_minutes, self.full_minutes)
        if environment == "production" and min(minutes) < SHORTEST_MINUTES and not self.short_stages_reason:
            spans = ", ".join(f"{span:g}" for span in minutes)
            raise BadInputError(
                "Stages are too short for production",
                what=f"stages of {spans} minutes; under a minute nothing is learned about a new version",
                where="CANARY_MINUTES, PROGRESSIVE_MINUTES, FULL_MINUTES",
                next_step="use at least 1 minute each, or give SHORT_STAGES_REASON, which lands in the record",
            )
        return minutes
