"""What a person with all rights in the namespace does once: make our objects, and have each Rollout name the AnalysisTemplate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress

from azora_ci.clients.kubernetes.api import Api, ConflictError
from azora_ci.clients.kubernetes.objects import member
from azora_ci.core.config.kubernetes import PROXY
from azora_ci.targets.kubernetes import manifests, rollouts
from azora_ci.targets.kubernetes.cluster import Names
from azora_ci.targets.kubernetes.rollouts import RolloutState

KEPT = frozenset({"Lease", "ConfigMap"})  # made where they are missing: who holds the lock, and the journal, are not ours to set back
ANALYSIS = "/spec/strategy/canary/analysis"


def install(api: Api, names: Names, states: Mapping[str, RolloutState]) -> str:
    """Make what is missing and return a text about it, with every object that was applied as JSON, which kubectl takes, too.

    A Rollout that waits in a step is not touched: a changed strategy would not be part of what was begun.
    """
    made = manifests.objects(names, proxy=names.settings.probes == PROXY)
    for path, document in made:
        if document["kind"] in KEPT:
            with suppress(ConflictError):
                api.create(path, document)
        else:
            api.apply(path, document)
    lines = [f"✓ {document['kind']} {document['metadata']['name']}" for _, document in made]
    for seen in states.values():
        if rollouts.has_watch(seen.document, names.settings):
            continue
        if seen.stable and not seen.finished:
            lines.append(f"✗ {seen.text}: it is under way; run this again afterwards")
            continue
        entry = {"templateName": names.watch}
        templates = member(seen.document, "spec", "strategy", "canary", "analysis", "templates")
        analysis = member(seen.document, "spec", "strategy", "canary", "analysis")
        value = {**(analysis or {}), "templates": [entry, *(templates or [])]}
        value.pop("startingStep", None)
        condition = {"op": "test", "path": "/metadata/resourceVersion", "value": seen.document["metadata"]["resourceVersion"]}
        api.patch(f"{names.rollouts}/{seen.name}", [condition, {"op": "add", "path": ANALYSIS, "value": value}])
        lines.append(f"✓ Rollout {seen.name} names it: write spec.strategy.canary.analysis = {json.dumps(value)} into its manifest, too")
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [document for _, document in made]}, indent=1)
    lines.append(f"The account of our jobs is {names.deployer}; make its kubeconfig the secret KUBECONFIG_DATA. What was applied:\n{text}")
    return "\n".join(lines)
