"""The request for ``rollback-production.yml`` under act: what GitHub sends when an on-call engineer starts the rollback by button."""

from __future__ import annotations

from collections.abc import Mapping

from azora_ci.cli.adopt import plan
from azora_ci.rehearsal.act.runner import RunRequest
from azora_ci.rehearsal.world import World

WORKFLOW = plan.WORKFLOW_FOLDER / "rollback-production.yml"
JOB = "rollback"
PRESSED_BY = "on-call-engineer"
REASON = 'checkout fails & "nobody" knows why: $HOME'  # characters that neither Slack nor the shell may interpret


def request(world: World) -> RunRequest:
    """Return the request that rolls back the newest deployment; of the workflow's inputs only the reason is filled in."""
    owner, name = world.application.name.split("/")
    repository = {"full_name": world.application.name, "name": name, "owner": {"login": owner}, "default_branch": "main"}
    inputs = {"reason": REASON, "deployment-id": "", "after-deadline": "false", "schema-reason": ""}
    payload = {"repository": repository, "sender": {"login": PRESSED_BY}, "ref": "refs/heads/main", "inputs": inputs}
    return RunRequest(
        event="workflow_dispatch",
        payload=payload,
        repository=world.scratch.folder,
        workflow=world.scratch.folder / WORKFLOW,
        variables=world.variables(),
        secrets=world.secrets(),
        environment=environment(world),
        actor=PRESSED_BY,
        published=world.scratch.published(WORKFLOW.name),
    )


def environment(world: World) -> Mapping[str, str]:
    """Return the environment variables of the rollback's steps: those of the deployment, with the id of the next run."""
    return {**world.environment(1), "GITHUB_RUN_ID": str(int(world.run_id) + 1)}
