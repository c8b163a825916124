"""A client of GitHub's REST API: reads all pages, bounded retries, obeys rate limits; of what it could change, it adds deployments.

Protocol: docs.github.com/rest, "Best practices for using the REST API" (``retry-after`` first, then ``x-ratelimit-reset``, else at
least a minute) and "Using pagination in the REST API" (follow ``Link: rel="next"``).
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from azora_ci import __version__
from azora_ci.clients import http
from azora_ci.core.clock import Clock
from azora_ci.core.documents import UnreadableError, expected_shape, read_json
from azora_ci.core.errors import BadInputError, UnreachableError
from azora_ci.core.variables import Secret

if TYPE_CHECKING:
    import requests

PAGE_SIZE = 100  # the most that GitHub gives
MOST_PAGES = 100
ATTEMPTS = 4  # of a request that is answered with 5xx or loses its connection
PATIENCE_SECONDS = 900.0  # the longest that one request may wait for rate limits
DEFAULT_WAIT_SECONDS = 60.0  # GitHub: "wait for at least one minute" if no header names the time
TIMEOUTS = (10.0, 30.0)  # seconds to connect, to read
PERMISSIONS = "checks: read, statuses: read, actions: read, contents: read and pull-requests: read"


class GitHub:
    """A repository (``owner/name``). ``say`` is called with a line for every wait; ``pause``: seconds before the first retry.

    Its ``patience`` may be set: the longest, in seconds, that one request waits for rate limits.
    """

    def __init__(
        self,
        api_url: str,
        repository: str,
        token: Secret,
        *,
        clock: Clock,
        say: Callable[[str], None] = lambda _line: None,
        pause: float = 1.0,
    ) -> None:
        self._api = api_url.rstrip("/")
        self._base = f"{self._api}/repos/{quote(repository)}"
        self._token = token
        self._clock = clock
        self._say = say
        self._pause = pause
        self.patience = PATIENCE_SECONDS
        self._session: requests.Session | None = None

    def default_branch(self) -> str:
        """Return the name of the default branch."""
        return str(self._get(self._base, "default_branch"))

    def branch(self, name: str) -> dict[str, Any]:
        """Return a branch with its classic protection."""
        branch = self._get(f"{self._base}/branches/{quote(name, safe='')}")
        if not isinstance(branch, dict):
            raise self._other_shape(self._base, "a branch is no object")
        return branch

    def branch_rules(self, name: str) -> list[dict[str, Any]]:
        """Return the rules of all active rulesets that apply to a branch."""
        return self._pages(f"{self._base}/rules/branches/{quote(name, safe='')}")

    def check_runs(self, commit: str) -> list[dict[str, Any]]:
        """Return the check runs of a commit, of earlier attempts too: ``filter=latest`` may hide one of two jobs of one name."""
        return self._pages(f"{self._base}/commits/{commit}/check-runs", key="check_runs", filter="all")

    def workflow_runs(self, commit: str) -> list[dict[str, Any]]:
        """Return the workflow runs of a commit, each in its latest attempt."""
        return self._pages(f"{self._base}/actions/runs", key="workflow_runs", head_sha=commit)

    def job_attempts(self, check_suite: int) -> dict[int, int]:
        """Return id of a check run -> attempt, for the jobs of a suite; empty when the suite is of another app than GitHub Actions.

        A job of GitHub Actions and its check run have the same id.
        """
        runs = self._pages(f"{self._base}/actions/runs", key="workflow_runs", check_suite_id=str(check_suite))
        with expected_shape(lambda problem: self._other_shape(self._base, problem)):
            ids = [int(run["id"]) for run in runs]
            jobs = [job for run_id in ids for job in self._pages(f"{self._base}/actions/runs/{run_id}/jobs", key="jobs", filter="all")]
            return {int(job["id"]): int(job["run_attempt"]) for job in jobs}

    def jobs_of_attempt(self, run_id: str, attempt: int) -> list[dict[str, Any]]:
        """Return the jobs of one attempt of a workflow run, each with ``name``, ``status`` and ``conclusion``."""
        return self._pages(f"{self._base}/actions/runs/{quote(run_id)}/attempts/{attempt}/jobs", key="jobs")

    def statuses(self, commit: str) -> list[dict[str, Any]]:
        """Return all commit statuses of a commit, including replaced statuses of the same context."""
        return self._pages(f"{self._base}/commits/{commit}/statuses")

    def check_suite_of_run(self, run_id: str) -> int:
        """Return the id of the check suite that holds a workflow run's own check runs."""
        url = f"{self._base}/actions/runs/{quote(run_id)}"
        with expected_shape(lambda problem: self._other_shape(url, problem)):
            return int(self._get(url, "check_suite_id"))

    def file(self, path: str, commit: str) -> str:
        """Return the text of a file of a commit. Raises BadInputError when there is none."""
        document = self._get(f"{self._base}/contents/{quote(path)}", ref=commit)
        try:
            return base64.b64decode(document["content"]).decode("utf-8")
        except (KeyError, TypeError, ValueError) as error:
            raise BadInputError(
                "GitHub does not give this file",
                what=f"{type(error).__name__}: it is a folder, over 1 MB, or no UTF-8",
                where=path,
                next_step="check DEPLOY_CONFIG",
            ) from error

    def environment(self, name: str) -> dict[str, Any]:
        """Return an environment with its protection rules."""
        environment: dict[str, Any] = self._get(f"{self._base}/environments/{quote(name, safe='')}")
        return environment

    def release_tags(self) -> list[str]:
        """Return the names of the tags that begin with v."""
        return [str(ref["ref"]).removeprefix("refs/tags/") for ref in self._pages(f"{self._base}/git/matching-refs/tags/v")]

    def commits_since(self, base: str | None, commit: str) -> list[dict[str, Any]]:
        """Return the commits that ``commit`` has and the tag ``base`` has not; without ``base`` all of them."""
        if base is None:
            return self._pages(f"{self._base}/commits", sha=commit)
        return self._pages(f"{self._base}/compare/{quote(base, safe='')}...{commit}", key="commits")

    def pulls_of(self, commit: str) -> list[dict[str, Any]]:
        """Return the pull requests that a commit belongs to."""
        return self._pages(f"{self._base}/commits/{commit}/pulls")

    def reviews(self, number: int) -> list[dict[str, Any]]:
        """Return the reviews of a pull request, in the order of time."""
        return self._pages(f"{self._base}/pulls/{int(number)}/reviews")

    def deployments(self, environment: str) -> list[tuple[int, Any]]:
        """Return number and payload of the newest deployments to an environment, a page of them."""
        url = f"{self._base}/deployments"
        response = self._request(url, {"environment": environment, "task": "deploy", "per_page": str(PAGE_SIZE)})
        with expected_shape(lambda problem: self._other_shape(url, problem)):
            return [(int(entry["id"]), entry.get("payload")) for entry in self._entries(response, None)]

    def create_deployment(self, document: dict[str, Any]) -> int:
        """Create a deployment and return its number."""
        url = f"{self._base}/deployments"
        with expected_shape(lambda problem: self._other_shape(url, problem)):
            return int(self._json(self._request(url, {}, document))["id"])

    def create_deployment_status(self, number: int, document: dict[str, Any]) -> None:
        """Add a status to a deployment."""
        self._request(f"{self._base}/deployments/{number}/statuses", {}, document)

    def _get(self, url: str, key: str | None = None, **parameters: str) -> Any:
        document = self._json(self._request(url, parameters))
        with expected_shape(lambda problem: self._other_shape(url, problem)):
            return document[key] if key else document

    def _pages(self, url: str, key: str | None = None, **parameters: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        address, query = url, {"per_page": str(PAGE_SIZE), **parameters}
        for _ in range(MOST_PAGES):
            response = self._request(address, query)
            entries += self._entries(response, key)
            next_url = response.links.get("next", {}).get("url")
            if not next_url:
                return entries
            address, query = self._require_same_server(next_url), {}
        raise UnreachableError(
            "GitHub's answer does not end",
            what=f"more than {MOST_PAGES} pages of {PAGE_SIZE}",
            where=url,
            next_step="look at what creates so many checks on one commit",
        )

    def _entries(self, response: requests.Response, key: str | None) -> list[dict[str, Any]]:
        page = self._json(response)
        entries = page.get(key) if key and isinstance(page, dict) else page
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise self._other_shape(response.url, f"no list of objects{f' under {key}' if key else ''}: {response.text[:200]!r}")
        return entries

    def _other_shape(self, url: str, problem: str) -> UnreachableError:
        return UnreachableError(
            "GitHub's answer has another shape", what=problem, where=url, next_step="check GITHUB_API_URL and any proxy before it"
        )

    def _require_same_server(self, url: str) -> str:
        if urlsplit(url)[:2] != urlsplit(self._api)[:2]:  # the token must not be sent to another server
            raise UnreachableError(
                "GitHub's answer leads elsewhere",
                what=f"the next page is said to be at {url}",
                where=self._api,
                next_step="check GITHUB_API_URL and any proxy before it",
            )
        return url

    def _request(self, url: str, query: dict[str, str], document: dict[str, Any] | None = None) -> requests.Response:
        """Return the answer of status 200, or 201 where a document is sent, which is sent once: its answer may be lost, and it be there.

        Waits for rate limits, repeats 5xx and broken connections, raises for other statuses.
        """
        waited = 0.0
        attempts = ATTEMPTS if document is None else 1
        for attempt in self._clock.attempts(attempts, self._pause):
            response, problem = self._send(url, query, document)
            while response is not None and (wait := self._rate_limit_wait(response)) is not None:
                waited += wait
                if waited > self.patience:
                    raise self._rate_limit_error(url, wait)
                self._say(f"GitHub's rate limit: waiting {wait:.0f} s")
                self._clock.sleep(wait)
                response, problem = self._send(url, query, document)
            if response is not None and response.status_code < 500:
                self._require_success(url, response, 200 if document is None else 201)
                return response
            if not attempt.last:
                self._say(f"GitHub: {problem}; {attempt}")
        raise UnreachableError(
            "GitHub does not answer",
            what=f"{attempts} attempt{'s' if attempts > 1 else ''}, the last one: {problem}",
            where=url,
            next_step="look at githubstatus.com and run the job again",
        )

    def _send(self, url: str, query: dict[str, str], document: dict[str, Any] | None) -> tuple[requests.Response | None, str]:
        import requests

        if self._session is None:
            self._session = requests.Session()
            self._session.hooks["response"] = [http.take_unless_streamed]
            self._session.headers.update(
                {
                    "Accept": "application/vnd.github+json",
                    "Accept-Encoding": "gzip",
                    "Authorization": f"Bearer {self._token.reveal()}",
                    "User-Agent": f"azora-ci/{__version__}",
                    "X-GitHub-Api-Version": "2022-11-28",
                }
            )
        try:
            if document is None:
                response = self._session.get(url, params=query, timeout=TIMEOUTS)
            else:
                response = self._session.post(url, json=document, timeout=TIMEOUTS, allow_redirects=False)
        except requests.RequestException as error:
            return None, f"{type(error).__name__}: {error}"
        except UnreadableError as error:
            raise _unreadable(url, str(error)) from error
        return response, f"HTTP {response.status_code}"

    def _rate_limit_wait(self, response: requests.Response) -> float | None:
        """Return the seconds to wait if an answer reports a rate limit, else None."""
        if response.status_code not in {403, 429}:
            return None
        retry_after = response.headers.get("retry-after", "")
        if retry_after.isdigit():
            return float(retry_after)
        reset = response.headers.get("x-ratelimit-reset", "")
        if response.headers.get("x-ratelimit-remaining") == "0" and reset.isdigit():
            return max(1.0, int(reset) - self._clock.now().timestamp() + 1)
        is_limit = response.status_code == 429 or "rate limit" in response.text.lower()
        return DEFAULT_WAIT_SECONDS if is_limit else None

    def _rate_limit_error(self, url: str, wait: float) -> UnreachableError:
        return UnreachableError(
            "GitHub's rate limit is used up",
            what=f"the next {wait:.0f} s would pass the {self.patience:.0f} s that one request may wait",
            where=url,
            next_step="run the job again when the limit has been reset",
        )

    def _require_success(self, url: str, response: requests.Response, success: int) -> None:
        needed = PERMISSIONS if success == 200 else "deployments: write"
        reasons = {
            401: ("GitHub refuses the token", "hand over a valid GITHUB_TOKEN"),
            403: ("The token may not do this", f"give the job the permissions {needed}"),
            404: (
                "GitHub does not know this",
                f"check GITHUB_REPOSITORY, and the permissions {needed}: without them GitHub answers 404",
            ),
        }
        if response.status_code == success:
            return
        title, next_step = reasons.get(response.status_code, ("GitHub refuses the request", "read GitHub's message above"))
        raise BadInputError(title, what=f"HTTP {response.status_code}: {_message(response)}", where=url, next_step=next_step)

    def _json(self, response: requests.Response) -> Any:
        try:
            return read_json(response.content)
        except UnreadableError as error:
            what = f"{error}; {response.headers.get('content-type')}: {response.text[:200]!r}"
            raise _unreadable(response.url, what) from error


def _unreadable(url: str, what: str) -> UnreachableError:
    return UnreachableError("GitHub's answer is not read", what=what, where=url, next_step="check GITHUB_API_URL and any proxy before it")


def _message(response: requests.Response) -> str:
    try:
        return str(read_json(response.content)["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return response.text[:300] or "(no message)"
