"""The jobs of a deployment: their order, what each waits for, and what each does. Pure; the workflow files say the same."""

from __future__ import annotations

import math

JOBS: dict[str, str] = {
    "validate-release": "Validate the release tag and name the deployment.",
    "audit": "Gather what is known about vulnerabilities of the application's packages, from its lock files alone.",
    "build": "Run the application's own build without any secret, and hand over the tree that its migrations need.",
    "pre-deployment-validation": "Check every gate of the release commit before anything is touched.",
    "database-backup": "Back the production database up to S3 and prove the backup by restoring it.",
    "database-migrations": "Apply the application's migrations behind a verified backup.",
    "images": "Run the production build and make one image per service, without any secret.",
    "build-and-push": "Push the images that were built, one per service, and name their digests.",
    "gradual-rollout": "Roll out to 5 %, 50 %, 100 % of traffic with health monitoring and automatic return.",
    "smoke-tests": "Probe the deployed services, the database and the critical endpoints.",
    "deployment-record": "Assemble the deployment record from the evidence of all jobs.",
    "manual-rollback": "Write the rollback instructions for this very deployment.",
    "deployment-failure-handler": "Say exactly what broke and what state production is in.",
}
# Jobs that run code of the application, without any secret; their steps are in steps/application/.
APPLICATION_JOBS = ("audit", "build", "images")
# Tools run by themselves, outside of a deployment, through the same ``execute`` as the jobs.
TOOLS: dict[str, str] = {
    "restore-drill": "Restore the newest backup (or a given one) and prove it against its manifest.",
    "rollback": "Take a deployment back by hand, within its rollback window.",
}
# The jobs that each job waits for. A job cannot have started unless all of them succeeded.
NEEDS: dict[str, tuple[str, ...]] = {
    "validate-release": (),
    "audit": ("validate-release",),
    "build": ("validate-release",),
    "pre-deployment-validation": ("validate-release", "audit", "build"),
    "database-backup": ("validate-release", "pre-deployment-validation"),
    "database-migrations": ("database-backup",),
    "images": ("pre-deployment-validation",),
    "build-and-push": ("images",),
    "gradual-rollout": ("database-migrations", "build-and-push"),
    "smoke-tests": ("gradual-rollout",),
    "deployment-record": ("smoke-tests",),
    "manual-rollback": ("gradual-rollout",),
}
PIPELINE = tuple(NEEDS)  # in the order in which they run; the failure handler comes after all of them
EVIDENCE_JOBS = PIPELINE[: PIPELINE.index("deployment-record")]  # the record is made of their fragments
CONNECTING_JOBS = ("gradual-rollout", "database-migrations", "database-backup")  # over SSH; the job that sees most hosts comes first
# What the name of each job's artifact begins with, as the guide gives it for its ten jobs.
ARTIFACTS = {
    "validate-release": "release-logs",
    "audit": "audit-logs",
    "build": "application-build-logs",
    "pre-deployment-validation": "validation-logs",
    "database-backup": "backup-logs",
    "database-migrations": "migration-logs",
    "images": "application-image-logs",
    "build-and-push": "build-logs",
    "gradual-rollout": "rollout-logs",
    "smoke-tests": "smoke-test-logs",
    "deployment-record": "deployment-record",
    "manual-rollback": "rollback-instructions",
    "deployment-failure-handler": "deployment-failure-report",
}
STAGES = (("canary", 5), ("progressive", 50), ("full", 100))  # of a rollout: name, and percent of traffic and of instances


def instances_at(percent: int, total: int) -> int:
    """Return how many of ``total`` instances run the new version at a stage: the share rounded up, at least one."""
    return max(1, math.ceil(percent * total / 100))
