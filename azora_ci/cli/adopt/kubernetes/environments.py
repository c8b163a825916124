"""Which environment a path or a name speaks about: production, none, another one, or nobody's. Pure."""

from __future__ import annotations

import re

PRODUCTION, ANY, OTHER, ASIDE = 2, 1, 0, -1
_PRODUCTION = re.compile(r"(?:^|[/._-])(?:prod|production|prd|live)(?=$|[/._-])", re.IGNORECASE)
_OTHER = re.compile(
    r"(?:^|[/._-])(?:dev|devel|develop|development|staging|stage|stg|qa|uat|preview|local|localhost|minikube|kind|k3d|sandbox|integration)"
    r"(?=$|[/._-])",
    re.IGNORECASE,
)
_ASIDE = re.compile(
    r"(?:^|/)(?:tests?|e2e|examples?|samples?|docs?|documentation|hack|fixtures?|testdata|__tests__|\.github|templates?|tutorials?)(?=/)"
    r"|(?:^|[/._-])(?:quickstart|example|sample)(?=$|[/._-])",
    re.IGNORECASE,
)


def rank(path: str) -> int:
    """Return how likely production is what a path, or a namespace, speaks about."""
    if _ASIDE.search(path):
        return ASIDE
    if _PRODUCTION.search(path):
        return PRODUCTION
    return OTHER if _OTHER.search(path) else ANY
