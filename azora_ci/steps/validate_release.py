"""validate-release: decide which tag is deployed, at which commit, under which deployment id."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from azora_ci.clients.git import Git, Tag
from azora_ci.core.clock import rfc3339
from azora_ci.core.errors import BadInputError, NotTrueError
from azora_ci.core.markdown import code, table
from azora_ci.core.release import Version, highest_release, new_deployment_id
from azora_ci.core.settings import Common
from azora_ci.core.variables import Secret, git_sha, variable
from azora_ci.steps.job import Job

TAGS = "refs/tags/"


@dataclass(frozen=True, kw_only=True)
class Settings(Common):
    """What decides which tag is deployed."""

    event: str = variable("GITHUB_EVENT_NAME", "event that started the run, set by GitHub", example="push")
    ref: str = variable("GITHUB_REF", "ref that was pushed, or on which the run was started, set by GitHub", example="refs/tags/v1.2.3")
    sha: str | None = variable(
        "GITHUB_SHA", "commit that GitHub saw at that ref, set by GitHub", example="0123456789abcdef0123456789abcdef01234567",
        parse=git_sha, required=False,
    )  # fmt: skip
    input_version: str | None = variable(
        "INPUT_VERSION",
        "version to deploy, input of workflow_dispatch; empty: the tag the run was started on, else the highest release",
        example="v1.2.3",
        required=False,
    )
    github_token: Secret | None = variable(
        "GITHUB_TOKEN", "token that reads a private origin", example="ghs_…", required=False, secret=True
    )


def run(job: Job[Settings]) -> None:
    """Find and check the release, then name the deployment. Raises BadInputError, NotTrueError, UnreachableError."""
    settings = job.settings
    job.evidence |= {"trigger": settings.event, "requested": settings.input_version}
    requested = find_requested_version(settings)
    git = Git(job.processes, Path(), server_url=settings.server_url, token=settings.github_token)
    origin_tags = git.origin_tags() if git.has_origin() else None
    version = requested or find_highest_version(git.local_tags() if origin_tags is None else origin_tags)
    job.identity.version = str(version)
    job.evidence |= {"version": str(version), "git_ref": version.tag_ref, "origin_checked": origin_tags is not None}
    job.tick(f"{version} is a release version")
    tag = resolve_tag(git, version, origin_tags)
    refuse_moved_tag(settings, git, tag)
    commit_time = rfc3339(git.commit_time(tag.commit))
    job.identity.git_sha = tag.commit
    job.evidence |= {"git_sha": tag.commit, "tag_type": tag.type, "commit_time": commit_time}
    comparison = "no origin to compare with" if origin_tags is None else "origin and checkout agree"
    job.tick(f"{tag.type} tag {version} resolves to {tag.commit} of {commit_time} ({comparison})")
    name_deployment(job, tag)
    _write_outputs(job)


def find_requested_version(settings: Settings) -> Version | None:
    """Return the version that the event names, or None for the highest release. Raises BadInputError."""
    on_tag = settings.ref.startswith(TAGS)
    if settings.event == "push" and not on_tag:
        raise _trigger_error(f"a push of {settings.ref!r} is no push of a tag")
    if settings.event not in {"push", "workflow_dispatch"}:
        raise _trigger_error(f"the event is {settings.event!r}")
    if settings.event == "workflow_dispatch" and settings.input_version:
        return _parse_version(settings.input_version, "INPUT_VERSION (input version of workflow_dispatch)")
    return _parse_version(settings.ref.removeprefix(TAGS), "GITHUB_REF") if on_tag else None


def find_highest_version(tags: Collection[str]) -> Version:
    """Return the highest version among tag names that is no pre-release. Raises BadInputError when there is none."""
    version = highest_release(tags)
    if version is None:
        raise BadInputError(
            "No release tag",
            what=f"no version was given and none of {len(tags)} tags is a release that is no pre-release",
            where="tags of the repository",
            next_step="push a tag such as v1.2.3, or name a version when starting the run",
        )
    return version


def resolve_tag(git: Git, version: Version, origin_tags: Collection[str] | None) -> Tag:
    """Return the tag as origin has it. Raises BadInputError for a missing tag, NotTrueError when the checkout has another commit."""
    local_tag = git.tag(str(version))
    if origin_tags is not None:
        if str(version) not in origin_tags:
            raise _missing_error(version, "origin")
        git.fetch_tag(str(version))
    tag = git.tag(str(version))
    if tag is None:
        raise _missing_error(version, "the checkout")
    if local_tag is not None and local_tag.commit != tag.commit:
        raise _moved_error(tag, f"the checkout has it at {local_tag.commit}, origin at {tag.commit}")
    return tag


def refuse_moved_tag(settings: Settings, git: Git, tag: Tag) -> None:
    """Raise NotTrueError when the tag no longer points to the commit that GitHub saw when the run started."""
    if settings.ref != f"{TAGS}{tag.name}" or not settings.sha:
        return
    if tag.commit not in {settings.sha, git.commit(settings.sha)}:
        raise _moved_error(tag, f"the run was started at {settings.sha}, the tag now is at {tag.commit}")


def name_deployment(job: Job[Settings], tag: Tag) -> None:
    """Set a new deployment id. "Re-run failed jobs" keeps this job's outputs, and so the id; when this job runs again, all jobs do."""
    name = new_deployment_id(int(job.clock.now().timestamp()), tag.commit)
    job.identity.deployment_id = name
    job.evidence["deployment_id"] = name
    job.say(f"Deployment id {name}")


def _write_outputs(job: Job[Settings]) -> None:
    evidence = job.evidence
    job.actions.output("version", evidence["version"])
    job.actions.output("deployment-id", evidence["deployment_id"])
    job.actions.output("git-sha", evidence["git_sha"])
    rows = [
        ("Deployment id", code(evidence["deployment_id"])),
        ("Commit", f"{evidence['git_sha']} of {evidence['commit_time']}"),
        ("Tag", f"{evidence['tag_type']}, {'fetched from origin' if evidence['origin_checked'] else 'of the checkout'}"),
        ("Started by", f"{evidence['trigger']} of {job.settings.actor}"),
    ]
    job.actions.summary(f"### Release {evidence['version']}\n\n{table(('', ''), rows)}")


def _parse_version(text: str, where: str) -> Version:
    try:
        return Version.parse(text)
    except ValueError as error:
        raise BadInputError(
            "Not a release version",
            what=f"{text[:200]!r} {error}",
            where=where,
            next_step="use a full version with a leading v, such as v1.2.3 or v2.0.0-rc1",
        ) from None


def _trigger_error(detail: str) -> BadInputError:
    return BadInputError(
        "Not a release event",
        what=detail,
        where="GITHUB_EVENT_NAME and GITHUB_REF",
        next_step="push a release tag (v1.2.3), or start the workflow by hand with a version",
    )


def _missing_error(version: Version, place: str) -> BadInputError:
    return BadInputError(
        "Release tag does not exist",
        what=f"{place} has no tag {version}",
        where=version.tag_ref,
        next_step=f"push the tag (git push origin {version}), or name an existing one",
    )


def _moved_error(tag: Tag, detail: str) -> NotTrueError:
    return NotTrueError(
        "Release tag was moved",
        what=detail,
        where=f"{TAGS}{tag.name}",
        next_step="find out who moved it; release under a new version instead of moving tags",
    )
