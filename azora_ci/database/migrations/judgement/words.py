"""What several parts of the judgement say: short names of the verdicts, reasons, advice. Pure."""

from __future__ import annotations

from azora_ci.database.migrations.judgement.model import Verdict

GOOD, BAD, OPEN = Verdict.COMPATIBLE, Verdict.INCOMPATIBLE, Verdict.UNKNOWN
# Reasons.
NEW = "the release itself adds it, nobody uses it yet"
ADDED = "nothing that the running version uses is changed"
RENAMED = "the running version knows the old name"
REFUSES = "writes of the running version that it refuses fail"
BORNE = "the running version leaves its columns empty, which is borne"
CHECKED = "what the running version writes is checked already; this reads the older rows"
UNJUDGED = "it is not known what this does to the running version"
# Advice.
LATER = "stop using it in this release, and do this in the next one"
TRY = "read it, and try it on a copy with the running version beside it"
COPY = "add the new one beside it, have both versions bear both, and drop the old one in a later release"


def unless(own: bool, verdict: Verdict, reason: str, advice: str = "") -> tuple[Verdict, str, str]:
    """Return verdict, reason and advice; of what the release itself made (``own``) that it is harmless."""
    return (GOOD, NEW, "") if own else (verdict, reason, advice)
