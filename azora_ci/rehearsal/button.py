"""The button, pressed in a rehearsal: ``rollback-production.yml`` under act, as somebody on call starts it after a deployment."""

from __future__ import annotations

from collections.abc import Mapping

from azora_ci import adopt
from azora_ci.rehearsal import repo
from azora_ci.rehearsal.act import Request
from azora_ci.rehearsal.world import World

WORKFLOW = adopt.WORKFLOW_FOLDER / "rollback-production.yml"
JOB = "rollback"
PRESSED_BY = "on-call-engineer"
REASON = 'checkout fails & "nobody" knows why: $HOME'  # nothing in it may be taken for Slack's or the shell's


def request(world: World) -> Request:
    """Return the run of the button for the newest deployment: only the reason is filled in."""
    owner, name = repo.NAME.split("/")
    repository = {"full_name": repo.NAME, "name": name, "owner": {"login": owner}, "default_branch": "main"}
    inputs = {"reason": REASON, "deployment-id": "", "after-deadline": "false"}
    payload = {"repository": repository, "sender": {"login": PRESSED_BY}, "ref": "refs/heads/main", "inputs": inputs}
    return Request(
        event="workflow_dispatch",
        payload=payload,
        repository=world.scratch.folder,
        workflow=world.scratch.folder / WORKFLOW,
        variables=world.variables(),
        secrets=world.secrets(),
        environment=environment(world),
        actor=PRESSED_BY,
    )


def environment(world: World) -> Mapping[str, str]:
    """Return what its steps see: those of a run of its own."""
    return {**world.environment(1), "GITHUB_RUN_ID": str(int(world.run_id) + 1)}
