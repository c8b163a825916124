"""These tests run validate-release on a real work tree, a bare origin, and a checkout made as actions/checkout makes it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from azora_ci.steps.runner import execute
from tests.support.commands import git


@dataclass
class Repositories:
    work: Path  # a developer commits and tags here
    origin: Path  # the developer pushes here
    checkout: Path  # the runner works here
    folder: Path

    def commit(self, text: str) -> str:
        (self.work / "app.txt").write_text(text)
        git(self.work, "add", "app.txt")
        git(self.work, "commit", "--quiet", "-m", text)
        git(self.work, "push", "--quiet", "origin", "main")
        return git(self.work, "rev-parse", "HEAD")

    def tag(self, name: str, *, annotated: bool = True, target: str = "HEAD") -> None:
        git(self.work, "tag", *(["-a", "-m", name] if annotated else []), "--force", name, target)
        git(self.work, "push", "--quiet", "--force", "origin", f"refs/tags/{name}")

    def check_out(self, ref: str = "refs/tags/v1.2.3") -> None:
        """Do what actions/checkout does: fetch one commit and write it into the ref, so that annotated tags get lightweight."""
        git(self.folder, "init", "--quiet", str(self.checkout))
        git(self.checkout, "remote", "add", "origin", f"file://{self.origin}")
        commit = git(self.origin, "rev-parse", f"{ref}^{{commit}}")
        git(self.checkout, "fetch", "--quiet", "--no-tags", "--depth=1", "origin", f"+{commit}:{ref}")
        git(self.checkout, "checkout", "--quiet", "--force", ref)


@pytest.fixture
def repositories(tmp_path: Path) -> Repositories:
    repositories = Repositories(tmp_path / "work", tmp_path / "origin.git", tmp_path / "checkout", tmp_path)
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", str(repositories.origin))
    git(repositories.origin, "config", "uploadpack.allowAnySHA1InWant", "true")  # as GitHub allows
    git(tmp_path, "init", "--quiet", "--initial-branch=main", str(repositories.work))
    git(repositories.work, "remote", "add", "origin", str(repositories.origin))
    repositories.commit("first")
    return repositories


@dataclass
class Outcome:
    code: int
    outputs: dict[str, str]
    fragment: dict[str, Any]
    summary: str

    @property
    def error(self) -> str:
        return f"{self.fragment['error']['title']}: {self.fragment['error']['what']}"


class Step:
    def __init__(self, folder: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.checkout, self.monkeypatch = folder, checkout, monkeypatch

    def __call__(self, event: str = "push", ref: str = "refs/tags/v1.2.3", **more: str) -> Outcome:
        self.monkeypatch.chdir(self.checkout)
        logs, output, summary = self.folder / "logs", self.folder / "output", self.folder / "summary"
        shutil.rmtree(logs, ignore_errors=True)
        for file in (output, summary):
            file.write_text("")
        environ = {
            "GITHUB_EVENT_NAME": event,
            "GITHUB_REF": ref,
            "GITHUB_RUN_ID": "77",
            "GITHUB_ACTOR": "octocat",
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(summary),
            "DEPLOYMENT_LOG_DIR": str(logs),
            "RECEIVED_ARTIFACTS_DIR": str(self.folder / "received"),
        }
        code = execute("validate-release", environ | more)
        outputs = dict(re.findall(r"(?m)^(.+)<<ghadelimiter_.*\n(.*)\nghadelimiter_", output.read_text()))
        fragment = (logs / "record" / "validate-release.json").read_bytes()
        assert outputs.pop("fragment-sha256") == hashlib.sha256(fragment).hexdigest()
        return Outcome(code, outputs, json.loads(fragment), summary.read_text())


@pytest.fixture
def step(tmp_path: Path, repositories: Repositories, monkeypatch: pytest.MonkeyPatch) -> Step:
    return Step(tmp_path, repositories.checkout, monkeypatch)


def test_pushed_annotated_tag_that_checkout_made_lightweight(repositories: Repositories, step: Step) -> None:
    commit = repositories.commit("release")
    repositories.tag("v1.2.3")
    repositories.check_out()
    assert git(repositories.checkout, "cat-file", "-t", "refs/tags/v1.2.3") == "commit"
    before = int(time.time())
    outcome = step(GITHUB_SHA=commit)
    assert outcome.code == 0
    name = outcome.outputs["deployment-id"]
    assert outcome.outputs == {"version": "v1.2.3", "deployment-id": name, "git-sha": commit}
    seconds, _, short = name.partition("-")
    assert before <= int(seconds) <= time.time()
    assert short == commit[:6]
    fragment = outcome.fragment
    assert (fragment["version"], fragment["git_sha"], fragment["deployment_id"]) == ("v1.2.3", commit, name)
    committed = git(repositories.work, "show", "-s", "--format=%ct", commit)
    assert fragment["evidence"] == {
        "trigger": "push",
        "requested": None,
        "version": "v1.2.3",
        "git_ref": "refs/tags/v1.2.3",
        "origin_checked": True,
        "git_sha": commit,
        "tag_type": "annotated",
        "commit_time": time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(int(committed))),
        "deployment_id": name,
        "branch": "main",
        "branch_commit": commit,
        "branches_allowed": ["main"],
    }
    assert f"| Deployment id | `{name}` |" in outcome.summary
    assert "push of octocat" in outcome.summary


def test_the_tag_object_counts_as_its_commit(repositories: Repositories, step: Step) -> None:
    repositories.tag("v1.2.3")
    repositories.check_out()
    assert step(GITHUB_SHA=git(repositories.origin, "rev-parse", "refs/tags/v1.2.3")).code == 0


def test_pushed_lightweight_tag(repositories: Repositories, step: Step) -> None:
    repositories.tag("v2.0.0-rc1", annotated=False)
    repositories.check_out("refs/tags/v2.0.0-rc1")
    outcome = step(ref="refs/tags/v2.0.0-rc1")
    assert (outcome.code, outcome.outputs["version"]) == (0, "v2.0.0-rc1")
    assert outcome.fragment["evidence"]["tag_type"] == "lightweight"


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("v1.2", "fewer than three numbers"),
        ("v01.2.3", "leading zero"),
        ("1.2.3", "lacks the leading v"),
        ("v1.2.3+build", "build metadata"),
        ("v1.2.3\n", "newline"),
        ("v1.2.3\nversion=v6.6.6", "characters that no version has"),
        ("v1.2.3;touch pwned", "characters that no version has"),
        ("$(touch pwned)", "characters that no version has"),
    ],
)
@pytest.mark.parametrize("event", ["push", "workflow_dispatch"])
def test_what_is_no_version_is_refused_before_anything_runs(
    repositories: Repositories, step: Step, event: str, version: str, reason: str
) -> None:
    repositories.checkout.mkdir()
    arguments = {"ref": f"refs/tags/{version}"} if event == "push" else {"ref": "refs/heads/main", "INPUT_VERSION": version}
    outcome = step(event, **arguments)
    assert outcome.code == 2
    assert reason in outcome.error
    assert outcome.outputs == {}
    assert list(repositories.checkout.iterdir()) == []
    assert outcome.fragment["deployment_id"] is None


@pytest.mark.parametrize(
    ("event", "ref", "message"),
    [("push", "refs/heads/main", "no push of a tag"), ("pull_request", "refs/tags/v1.2.3", "the event is 'pull_request'")],
)
def test_other_events_are_refused(repositories: Repositories, step: Step, event: str, ref: str, message: str) -> None:
    repositories.checkout.mkdir()
    outcome = step(event, ref=ref)
    assert outcome.code == 2
    assert message in outcome.error


def test_dispatch_names_a_version(repositories: Repositories, step: Step) -> None:
    repositories.tag("v1.2.3")
    released = git(repositories.work, "rev-parse", "HEAD")
    repositories.commit("later")
    repositories.check_out("refs/heads/main")
    outcome = step("workflow_dispatch", ref="refs/heads/main", INPUT_VERSION="v1.2.3", GITHUB_SHA="0" * 40)
    assert (outcome.code, outcome.outputs["git-sha"]) == (0, released)
    assert outcome.fragment["evidence"]["requested"] == "v1.2.3"


def test_empty_dispatch_takes_the_tag_it_was_started_on(repositories: Repositories, step: Step) -> None:
    for name in ("v1.2.3", "v9.0.0"):
        repositories.tag(name)
    repositories.check_out()
    assert step("workflow_dispatch", INPUT_VERSION="").outputs["version"] == "v1.2.3"


def test_empty_dispatch_on_a_branch_takes_the_highest_release(repositories: Repositories, step: Step) -> None:
    for name in ("v1.9.0", "v1.10.0", "v2.0.0-rc1", "nightly"):
        repositories.tag(name)
    repositories.check_out("refs/heads/main")
    outcome = step("workflow_dispatch", ref="refs/heads/main")
    assert (outcome.code, outcome.outputs["version"]) == (0, "v1.10.0")


def test_empty_dispatch_without_a_release_is_refused(repositories: Repositories, step: Step) -> None:
    repositories.tag("v2.0.0-rc1")
    repositories.check_out("refs/heads/main")
    outcome = step("workflow_dispatch", ref="refs/heads/main")
    assert outcome.code == 2
    assert "none of 1 tags is a release" in outcome.error


def test_missing_tag_is_refused(repositories: Repositories, step: Step) -> None:
    repositories.check_out("refs/heads/main")
    outcome = step("workflow_dispatch", ref="refs/heads/main", INPUT_VERSION="v1.2.3")
    assert outcome.code == 2
    assert "origin has no tag v1.2.3" in outcome.error


def test_tag_deleted_at_origin_is_refused(repositories: Repositories, step: Step) -> None:
    repositories.tag("v1.2.3")
    repositories.check_out()
    git(repositories.origin, "tag", "-d", "v1.2.3")
    outcome = step()
    assert outcome.code == 2
    assert "origin has no tag v1.2.3" in outcome.error


def test_tag_of_a_blob_is_refused(repositories: Repositories, step: Step) -> None:
    repositories.tag("v1.2.3", target="HEAD:app.txt")
    repositories.check_out("refs/heads/main")
    outcome = step("workflow_dispatch", ref="refs/heads/main", INPUT_VERSION="v1.2.3")
    assert outcome.code == 2
    assert "leads to no commit" in outcome.error


@pytest.mark.parametrize("date", ["99999999999999 +0000", "1700000000 +9959", "no date"])
def test_a_commit_of_no_date_is_refused(repositories: Repositories, step: Step, date: str) -> None:
    by = "Test <test@example.com>"
    lines = [f"tree {git(repositories.work, 'rev-parse', 'HEAD^{tree}')}", f"parent {git(repositories.work, 'rev-parse', 'HEAD')}"]
    (repositories.folder / "commit").write_text("\n".join([*lines, f"author {by} 1 +0000", f"committer {by} {date}", "", "at no time\n"]))
    commit = git(repositories.work, "hash-object", "-t", "commit", "-w", "--literally", str(repositories.folder / "commit"))
    git(repositories.work, "push", "--quiet", "origin", f"{commit}:refs/heads/main")
    repositories.tag("v1.2.3", target=commit)
    repositories.check_out()
    outcome = step()
    assert (outcome.code, outcome.fragment["error"]["title"]) == (2, "The commit has no date")


def test_tag_that_moved_after_the_checkout_is_refused(repositories: Repositories, step: Step) -> None:
    repositories.tag("v1.2.3")
    repositories.check_out()
    old = git(repositories.checkout, "rev-parse", "HEAD")
    new = repositories.commit("other")
    repositories.tag("v1.2.3")
    outcome = step()
    assert outcome.code == 1
    assert f"the checkout has it at {old}, origin at {new}" in outcome.error
    assert outcome.outputs == {}


def test_tag_that_moved_since_the_run_started_is_refused(repositories: Repositories, step: Step) -> None:
    old = repositories.commit("release")
    new = repositories.commit("other")
    repositories.tag("v1.2.3")
    repositories.check_out()
    outcome = step(GITHUB_SHA=old)
    assert outcome.code == 1
    assert f"the run was started at {old}, the tag now is at {new}" in outcome.error


def test_without_an_origin_the_tag_of_the_checkout_counts(repositories: Repositories, step: Step) -> None:
    repositories.tag("v1.2.3")
    repositories.check_out()
    git(repositories.checkout, "remote", "remove", "origin")
    outcome = step()
    assert outcome.code == 0
    assert outcome.fragment["evidence"]["origin_checked"] is False


def test_origin_out_of_reach(repositories: Repositories, step: Step) -> None:
    repositories.tag("v1.2.3")
    repositories.check_out()
    shutil.rmtree(repositories.origin)
    outcome = step()
    assert outcome.code == 3
    assert "Origin does not answer" in outcome.error


# --- the branch that holds the commit --------------------------------------------------------------------------------------


def orphan(repositories: Repositories, branch: str = "evil", *, configuration: str | None = None) -> str:
    """Commit on a branch without ancestors, push the branch and its tag v1.2.3, and return the commit."""
    git(repositories.work, "checkout", "--quiet", "--orphan", branch)
    if configuration is not None:
        write_configuration(repositories, configuration)
    git(repositories.work, "commit", "--quiet", "--allow-empty", "-m", "mine alone")
    git(repositories.work, "push", "--quiet", "origin", branch)
    repositories.tag("v1.2.3")
    return git(repositories.work, "rev-parse", "HEAD")


def write_configuration(repositories: Repositories, text: str) -> None:
    folder = repositories.work / ".github"
    folder.mkdir(exist_ok=True)
    (folder / "deploy-production.toml").write_text(text)
    git(repositories.work, "add", ".github")


CONFIGURATION = """
[checks]
required = ["test"]
build = [["true"]]
[a-table-of-a-later-version]
"""


def test_a_tag_on_an_orphan_commit_is_refused(repositories: Repositories, step: Step) -> None:
    commit = orphan(repositories)
    repositories.check_out()
    outcome = step(GITHUB_SHA=commit)
    assert outcome.code == 1
    assert f"{commit} is not part of main" in outcome.error
    assert outcome.outputs == {}


def test_a_tagged_commit_cannot_name_its_own_branch(repositories: Repositories, step: Step) -> None:
    orphan(repositories, configuration=CONFIGURATION + '[validation]\nbranches = ["evil"]\n')
    repositories.check_out()
    assert step().code == 1


def test_the_default_branch_names_other_branches(repositories: Repositories, step: Step) -> None:
    write_configuration(repositories, CONFIGURATION + '[validation]\nbranches = ["main", "release/1.x"]\n')
    repositories.commit("configuration")
    commit = orphan(repositories, "release/1.x")
    repositories.check_out()
    outcome = step()
    assert outcome.code == 0, outcome
    evidence = outcome.fragment["evidence"]
    assert (evidence["branch"], evidence["branch_commit"]) == ("release/1.x", commit)
    assert evidence["branches_allowed"] == ["main", "release/1.x"]


def test_a_configuration_of_the_default_branch_that_cannot_be_read_is_refused(repositories: Repositories, step: Step) -> None:
    write_configuration(repositories, CONFIGURATION + '[validation]\nbranches = ["--upload-pack=evil"]\n')
    repositories.commit("configuration")
    repositories.tag("v1.2.3")
    repositories.check_out()
    outcome = step()
    assert outcome.code == 2
    assert "validation.branches" in outcome.error


def test_a_branch_that_does_not_exist_closes_the_gate(repositories: Repositories, step: Step) -> None:
    repositories.tag("v1.2.3")
    repositories.check_out()
    assert step(DEFAULT_BRANCH="nowhere").code == 3


class PrivateOrigin(SimpleHTTPRequestHandler):
    """This server gives a bare repository's files to a client with the token, which it takes as GitHub does from actions/checkout."""

    expected = "basic " + base64.b64encode(b"x-access-token:ghs_the-token").decode()

    def do_GET(self) -> None:
        if (self.headers.get("Authorization") or "") == self.expected:
            super().do_GET()
        else:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="GitHub"')
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def private_origin(repositories: Repositories) -> Iterator[str]:
    handler = partial(PrivateOrigin, directory=str(repositories.folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_private_origin_is_opened_by_the_token_alone(
    repositories: Repositories, step: Step, private_origin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TRACE_CURL", "1")  # git prints every header, secrets too
    monkeypatch.setenv("GIT_TRACE_REDACT", "0")
    repositories.tag("v1.2.3")
    git(repositories.origin, "update-server-info")
    git(repositories.folder, "clone", "--quiet", str(repositories.origin), str(repositories.checkout))
    git(repositories.checkout, "remote", "set-url", "origin", f"{private_origin}/origin.git")
    assert step(GITHUB_SERVER_URL=private_origin).code == 3
    assert step(GITHUB_SERVER_URL="https://github.com", GITHUB_TOKEN="ghs_the-token").code == 3  # the token goes to GitHub only
    outcome = step(GITHUB_SERVER_URL=private_origin, GITHUB_TOKEN="ghs_the-token", DEFAULT_BRANCH="main")  # this server names none
    assert (outcome.code, outcome.fragment["evidence"]["tag_type"]) == (0, "annotated")
    logs = b"".join(path.read_bytes() for path in (step.folder / "logs").rglob("*") if path.is_file())
    assert b"AUTHORIZATION: basic ***" in logs
    assert b"ghs_the-token" not in logs
    assert PrivateOrigin.expected.split()[1].encode() not in logs
    assert "ghs_the-token" not in (repositories.checkout / ".git" / "config").read_text()


def test_no_repository(repositories: Repositories, step: Step) -> None:
    repositories.checkout.mkdir()
    outcome = step()
    assert outcome.code == 2
    assert "No git repository" in outcome.error


def test_no_artifact_gives_the_deployment_its_id(repositories: Repositories, step: Step) -> None:
    repositories.tag("v1.2.3")
    repositories.check_out()
    planted = {**step().fragment, "deployment_id": "1111111111-abcdef"}
    for folder in (step.folder / "received", repositories.checkout / "received-artifacts"):
        path = folder / "release-logs" / "record" / "validate-release.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(planted))
    rerun = step(GITHUB_RUN_ATTEMPT="2", RECEIVED_ARTIFACTS_DIR="")
    assert rerun.code == 0
    assert rerun.outputs["deployment-id"] != "1111111111-abcdef"
    assert step(GITHUB_RUN_ATTEMPT="2").outputs["deployment-id"] != "1111111111-abcdef"
