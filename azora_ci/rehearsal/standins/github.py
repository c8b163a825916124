"""A server of the part of GitHub's API that this project asks, for one repository. It keeps deployments that it is given, and answers
from a JSON file, read at each request.

The file's keys, all optional (shapes are those of docs.github.com/rest; what is left out is filled in):

- ``default_branch``: ``"main"``
- ``check_runs``: ``[{"name", "status", "conclusion", "app_id", "suite", "attempt", "head_sha"}]`` (status ``completed``, conclusion
  ``success``; without ``head_sha`` it belongs to every commit); those of GitHub Actions are jobs of a workflow run, its id the suite's
- ``workflow_runs``: ``[{"path", "status", "conclusion", "suite"}]``: what is listed for a commit
- ``run_jobs``: ``[{"name", "status", "conclusion"}]``: jobs of whichever run and attempt; without it images are being built
- ``statuses``: ``[{"context", "state", "head_sha"}]``
- ``rules``: rules of rulesets; ``protection``: ``required_status_checks`` of classic protection
- ``contents``: ``{"<path>": "<text>"}``: files of the default branch; ``branch_commit``: its commit
- ``environments``: ``{"<name>": {"protection_rules": […]}}``; ``tags``: names of tags
- ``commits``: ``[{"sha", "author": {"login"}, "parents"}]``: what a comparison or a list of commits gives
- ``pulls``: ``[{"number", "user", "merged_at", "base", "head", "commits": ["<sha>"]}]``; ``reviews``: ``{"<number>": […]}``
- ``runs``: ``{"<run id>": <check suite id>}``; ``page_size``: the most entries of one page
- ``deployments``: ``[{"id", "environment", "sha", "payload", "statuses"}]``: those made before, ids below 1000
- ``read_only``: true: the token may create nothing
- ``answers``: ``[{"path": "<part of the path>", "status", "headers", "times", "body"}]``: each replaces ``times`` answers
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from azora_ci.core.environment import process_environment

APP = 15368  # the id of GitHub Actions itself
REPOSITORY = 1  # the id of the repository
SUITE = 1000  # id of the check suite of runs that name none
LISTS = ("check_runs", "workflow_runs", "jobs", "commits")  # keys under which answers hold a list
RUN_JOBS = (
    {"name": "Application build", "status": "completed", "conclusion": "success"},
    {"name": "Application images", "status": "in_progress", "conclusion": None},
)
NOT_FOUND = 404, {"message": "Not Found"}
Answer = tuple[int, Any]


class GitHubApi:
    """The server, a context manager. ``url``: its address; ``requests``: the requested paths; ``token``: the bearer token it demands."""

    def __init__(self, state: Path, token: str, *, port: int = 0) -> None:
        self.state = state
        self.token = token
        self.requests: list[str] = []
        self.deployments: list[dict[str, Any]] = []  # those that were created
        self._statuses: dict[int, list[dict[str, Any]]] = {}  # number of a deployment -> its statuses, oldest first
        self._replaced: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> GitHubApi:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve_forever(self) -> None:
        """Serve until interrupted."""
        self._server.serve_forever()

    def write(self, **state: Any) -> None:
        """Replace the answers by one rename."""
        part = self.state.with_suffix(".part")
        part.write_text(json.dumps(state), encoding="utf-8")
        part.replace(self.state)

    def answer(self, target: str, headers: dict[str, str], body: bytes | None = None) -> tuple[int, Any, dict[str, str]]:
        """Return status, document and headers for a request; ``body``: of a POST."""
        path, query = unquote(urlsplit(target).path), parse_qs(urlsplit(target).query)
        state = json.loads(self.state.read_text(encoding="utf-8"))
        with self._lock:
            self.requests.append(path)
            replacement = self._replacement(state, path)
        if replacement is not None:
            return replacement
        if headers.get("user-agent", "") == "":
            return 403, {"message": "Request forbidden by administrative rules. Please set a User-Agent header."}, {}
        if headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"message": "Bad credentials"}, {}
        selected = {name: values[0] for name, values in query.items()}
        if re.fullmatch(r"/repos/[^/]+/[^/]+/deployments(/[0-9]+/statuses)?", path):
            with self._lock:
                status, document = self._of_deployments(state, path.split("/")[5:], selected, body)
        else:
            status, document = route(state, path, selected) if body is None else NOT_FOUND
        return self._paged(target, path, query, state, status, document)

    def statuses_of(self, number: int) -> list[dict[str, Any]]:
        """Return the statuses of a deployment that got one here, oldest first."""
        return list(self._statuses.get(number, []))

    def _of_deployments(self, state: dict[str, Any], parts: list[str], query: dict[str, str], body: bytes | None) -> Answer:
        deployments = [*state.get("deployments", []), *self.deployments]
        if body is None and not parts:
            selected = query.keys() & {"environment", "sha"}
            fitting = [entry for entry in deployments if all(entry.get(name, query[name]) == query[name] for name in selected)]
            return 200, [{"task": "deploy", **{key: entry[key] for key in entry if key != "statuses"}} for entry in fitting][::-1]
        number = int(parts[0]) if parts else 0
        before = next((entry.get("statuses", []) for entry in deployments if entry["id"] == number), None)
        if parts and before is None:
            return NOT_FOUND
        statuses = self._statuses.setdefault(number, list(before or []))
        if body is None:
            return 200, statuses[::-1]
        if state.get("read_only"):
            return 403, {"message": "Resource not accessible by integration"}
        document = json.loads(body)
        refusal = (status_refusal if parts else deployment_refusal)(document, state)
        if refusal is not None:
            return refusal
        if parts:
            statuses.append({"id": len(statuses) + 1, **document})
            return 201, statuses[-1]
        created = {"id": 1000 + len(self.deployments), "sha": document["ref"], **document}
        self.deployments.append(created)
        return 201, created

    def _replacement(self, state: dict[str, Any], path: str) -> tuple[int, Any, dict[str, str]] | None:
        for number, answer in enumerate(state.get("answers", [])):
            key = f"{number} {answer}"
            if answer["path"] in path and self._replaced[key] < answer.get("times", 1):
                self._replaced[key] += 1
                return answer["status"], answer.get("body", {"message": "told to answer this"}), answer.get("headers", {})
        return None

    def _paged(
        self, target: str, path: str, query: dict[str, list[str]], state: dict[str, Any], status: int, document: Any
    ) -> tuple[int, Any, dict[str, str]]:
        key = next((name for name in LISTS if name in document), "") if isinstance(document, dict) else ""
        entries = document[key] if key else document
        if status != 200 or not isinstance(entries, list):
            return status, document, {}
        size = min(int(query.get("per_page", ["30"])[0]), state.get("page_size", 100))
        page = int(query.get("page", ["1"])[0])
        part = entries[(page - 1) * size : page * size]
        links = {}
        if page * size < len(entries):
            following = {**{name: values[0] for name, values in query.items()}, "page": str(page + 1)}
            base = state.get("link_base", self.url)
            links = {"Link": f'<{base}{urlsplit(target).path}?{urlencode(following)}>; rel="next", <{base}{path}>; rel="last"'}
        return status, {**document, key: part} if key else part, links


def deployment_refusal(document: Any, state: dict[str, Any]) -> Answer | None:
    """Return why GitHub creates no deployment, None if it does. https://docs.github.com/rest/deployments/deployments"""
    kinds = {
        "ref": str, "task": str, "auto_merge": bool, "required_contexts": (list, type(None)), "payload": (dict, str), "environment": str,
        "description": (str, type(None)), "transient_environment": bool, "production_environment": bool,
    }  # fmt: skip
    if (invalid := _invalid(document, kinds, ("ref",))) is not None:
        return invalid
    ref = document["ref"]
    if not re.fullmatch(r"[0-9a-f]{40}", ref) and ref not in {state.get("default_branch", "main"), *state.get("tags", [])}:
        return 422, {"message": f"No ref found for: {ref}"}
    if document.get("auto_merge", True):
        return 202, {"message": f"Auto-merged main into {ref} on deployment."}
    # Without a list of its own, GitHub wants every check of the commit to have succeeded, this run's own ones too.
    if document.get("required_contexts") is None and any(run.get("conclusion") != "success" for run in state.get("check_runs", [])):
        return 409, {"message": f"Conflict: Commit status checks failed for {ref}."}
    return None


def status_refusal(document: Any, _state: dict[str, Any]) -> Answer | None:
    """Return why GitHub adds no status, None if it does. https://docs.github.com/rest/deployments/statuses"""
    links = ("log_url", "target_url", "environment_url")
    kinds = {"state": str, "description": str, "environment": str, "auto_inactive": bool, **dict.fromkeys(links, str)}
    if (invalid := _invalid(document, kinds, ("state",))) is not None:
        return invalid
    problems = [
        f"{name} must use http(s) scheme" for name in links if not str(document.get(name) or "http://x").startswith(("https://", "http://"))
    ]
    if document["state"] not in {"error", "failure", "inactive", "in_progress", "queued", "pending", "success"}:
        problems.append("state is not included in the list")
    if len(document.get("description", "")) > 140:
        problems.append("description is too long (maximum is 140 characters)")
    return (422, {"message": "Validation Failed", "errors": problems}) if problems else None


def _invalid(document: Any, kinds: dict[str, Any], required: tuple[str, ...]) -> Answer | None:
    """Return the answer to a body of another shape."""
    if not isinstance(document, dict):
        return 400, {"message": "Problems parsing JSON"}
    missing = [f'"{name}" wasn\'t supplied.' for name in required if name not in document]
    wrong = [
        f"For 'properties/{name}', {document[name]!r} is not of this type."
        for name in kinds
        if name in document and not isinstance(document[name], kinds[name])
    ]
    return (422, {"message": f"Invalid request.\n\n{' '.join(missing + wrong)}"}) if missing or wrong else None


def route(state: dict[str, Any], path: str, query: dict[str, str]) -> Answer:
    """Return the status and the unpaged document for a path; ``query`` selects workflow runs."""
    match = re.fullmatch(r"/repos/([^/]+/[^/]+)(/.*)?", path)
    if not match or match[1] != state.get("repository", match[1]):
        return NOT_FOUND
    branch, rest = state.get("default_branch", "main"), match[2] or ""
    if commit := re.fullmatch(r"/commits/([0-9a-f]{40})/(check-runs|statuses)", rest):
        return 200, _check_runs(state, commit[1]) if commit[2] == "check-runs" else _statuses(state, commit[1])
    if rest == "/actions/runs":
        return 200, _workflow_runs(state, query)
    if run := re.fullmatch(r"/actions/runs/([0-9]+)/jobs", rest):
        return 200, {"jobs": [job for job in _jobs(state) if job["run_id"] == int(run[1])]}
    if re.fullmatch(r"/actions/runs/[0-9]+/attempts/[0-9]+/jobs", rest):
        return 200, {"jobs": state.get("run_jobs", list(RUN_JOBS))}
    if run := re.fullmatch(r"/actions/runs/([0-9]+)", rest):
        suite = state.get("runs", {}).get(run[1])
        return (200, {"id": int(run[1]), "check_suite_id": suite}) if suite else NOT_FOUND
    if (reviewed := _review_answer(state, rest)) is not None:
        return reviewed
    fixed: dict[str, Any] = {
        "": {"full_name": match[1], "default_branch": branch},
        f"/branches/{branch}": {
            "name": branch,
            "commit": {"sha": state.get("branch_commit", "b" * 40)},
            "protected": "protection" in state,
            "protection": {
                "enabled": "protection" in state,
                "required_status_checks": state.get("protection", {"contexts": [], "checks": []}),
            },
        },
        f"/rules/branches/{branch}": state.get("rules", []),
    }
    return (200, fixed[rest]) if rest in fixed else NOT_FOUND


def _review_answer(state: dict[str, Any], rest: str) -> Answer | None:
    """Return the answer about files, environments, tags, commits, pull requests and reviews, or None for other paths."""
    if path := re.fullmatch(r"/contents/(.+)", rest):
        text = state.get("contents", {}).get(path[1])
        encoded = None if text is None else base64.encodebytes(text.encode()).decode()
        return NOT_FOUND if encoded is None else (200, {"encoding": "base64", "content": encoded})
    if environment := re.fullmatch(r"/environments/([^/]+)", rest):
        settings = state.get("environments", {}).get(environment[1])
        return (200, {"name": environment[1], **settings}) if settings is not None else NOT_FOUND
    if rest == "/git/matching-refs/tags/v":
        return 200, [{"ref": f"refs/tags/{name}", "object": {"type": "commit"}} for name in state.get("tags", [])]
    if rest == "/commits":
        return 200, state.get("commits", [])
    if comparison := re.fullmatch(r"/compare/([^/]+)\.\.\.[0-9a-f]{40}", rest):
        has_tag = comparison[1] in state.get("tags", [])
        return (200, {"status": "ahead", "commits": state.get("commits", [])}) if has_tag else NOT_FOUND
    if commit := re.fullmatch(r"/commits/([0-9a-f]{40})/pulls", rest):
        return 200, [pull for pull in state.get("pulls", []) if commit[1] in pull.get("commits", [])]
    if pull := re.fullmatch(r"/pulls/([0-9]+)/reviews", rest):
        return 200, state.get("reviews", {}).get(pull[1], [])
    return None


def _check_runs(state: dict[str, Any], commit: str) -> dict[str, Any]:
    runs = []
    for number, run in enumerate(state.get("check_runs", []), 1):
        if run.get("head_sha", commit) != commit:
            continue
        status = run.get("status", "completed")
        runs.append(
            {
                "id": run.get("id", number),
                "name": run["name"],
                "head_sha": commit,
                "status": status,
                "conclusion": run.get("conclusion", "success") if status == "completed" else None,
                "html_url": f"https://github.example/checks/{number}",
                "app": {"id": run.get("app_id", APP), "slug": run.get("app", "github-actions")},
                "check_suite": {"id": run.get("suite", SUITE)},
            }
        )
    return {"total_count": len(runs), "check_runs": runs[::-1]}  # newest first, as GitHub answers


def _jobs(state: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"id": run.get("id", number), "run_id": run.get("suite", SUITE), "run_attempt": run.get("attempt", 1), "name": run["name"]}
        for number, run in enumerate(state.get("check_runs", []), 1)
        if run.get("app_id", APP) == APP
    ]


def _workflow_runs(state: dict[str, Any], query: dict[str, str]) -> dict[str, Any]:
    if "check_suite_id" in query:
        suite = int(query["check_suite_id"])
        return {"workflow_runs": [{"id": suite, "check_suite_id": suite}] if any(job["run_id"] == suite for job in _jobs(state)) else []}
    runs = [
        {
            "id": number,
            "status": "completed",
            "conclusion": "success",
            "check_suite_id": run.get("suite", SUITE),
            "repository": {"id": REPOSITORY},
            **run,
        }
        for number, run in enumerate(state.get("workflow_runs", []), 1)
    ]
    return {"workflow_runs": runs}


def _statuses(state: dict[str, Any], commit: str) -> list[dict[str, Any]]:
    return [
        {"id": status.get("id", number), "context": status["context"], "state": status["state"], "target_url": None}
        for number, status in enumerate(state.get("statuses", []), 1)
        if status.get("head_sha", commit) == commit
    ][::-1]


def _handler(api: GitHubApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version = "github-stand-in"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers.get("content-length") or 0)))

        def _answer(self, received: bytes | None) -> None:
            named = {name.lower(): value for name, value in self.headers.items()}
            status, document, headers = api.answer(self.path, named, received)
            body = document.encode() if isinstance(document, str) else json.dumps(document).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json; charset=utf-8", "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is http.server's
            """Stay silent: the requests are kept in ``GitHubApi.requests``."""

    return Handler


def main() -> None:
    """Serve a state file: ``python -m azora_ci.rehearsal.standins.github STATE --port N``; the token is in GITHUB_TOKEN."""
    parser = argparse.ArgumentParser(description="GitHub API stand-in; the bearer token is taken from GITHUB_TOKEN")
    parser.add_argument("state", type=Path, help="JSON file with the answers")
    parser.add_argument("--port", type=int, default=0, help="loopback port; 0 lets the kernel choose")
    arguments = parser.parse_args()
    api = GitHubApi(arguments.state, process_environment()["GITHUB_TOKEN"], port=arguments.port)
    print(api.url, flush=True)
    api.serve_forever()


if __name__ == "__main__":
    main()
