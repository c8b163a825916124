"""A server of the part of GitHub's API that the gates read, for one repository. It answers from a JSON file, read at each request.

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

    def answer(self, target: str, headers: dict[str, str]) -> tuple[int, Any, dict[str, str]]:
        """Return status, document and headers for a request."""
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
        status, document = route(state, path, {name: values[0] for name, values in query.items()})
        return self._paged(target, path, query, state, status, document)

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
            status, document, headers = api.answer(self.path, {name.lower(): value for name, value in self.headers.items()})
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
