"""Who this job is, for clouds: an OIDC token of GitHub's, new for each call of a kubeconfig's program, in files that the program reads.

A job with ``id-token: write`` may ask GitHub for such a token (docs.github.com, "OpenID Connect reference"). A token lasts minutes and a
rollout an hour, so a file that was written once would be stale when the program renews its own.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from azora_ci.clients import http
from azora_ci.core.documents import UnreadableError, expected_shape, read_json
from azora_ci.core.errors import AzoraError, BadInputError, UnreachableError

AUDIENCE = "GITHUB_OIDC_AUDIENCE"  # in users.exec.env of a kubeconfig; no program of a cloud knows it
ADDRESS, BEARER = "ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"  # GitHub's names
GOOGLE = "//iam.googleapis.com/"  # begins the name of a provider of workload identity
GOOGLE_TOKENS = "https://sts.googleapis.com/v1/token"
TIMEOUTS, BODY_SECONDS = (5.0, 5.0), 10.0  # to connect, and between two bytes; whoever wants the token asks again
WHERE = f"{AUDIENCE} in users.exec.env of KUBECONFIG_DATA"


@contextmanager
def files(audience: str, environment: Mapping[str, str], hide: Callable[[str], None]) -> Iterator[dict[str, str]]:
    """Ask for a token, and yield the variables that name its files during the block: of AWS, of Azure, and where it is Google's, of Google.

    HOME is among them: programs keep what they get for the token below it, and prefer an identity that they find there.
    ``environment``: that of a job of GitHub Actions; ``hide`` is called with the token. Raises BadInputError where the job may not have
    one, UnreachableError where GitHub does not give one, and OSError.
    """
    token = _token(audience, environment)
    hide(token)
    with tempfile.TemporaryDirectory(prefix="azora-ci-") as folder:  # of this user alone
        path = Path(folder) / "token"
        path.write_text(token, encoding="ascii")
        named = {"HOME": folder, "AWS_WEB_IDENTITY_TOKEN_FILE": str(path), "AZURE_FEDERATED_TOKEN_FILE": str(path)}
        if audience.startswith(GOOGLE):
            source = Path(folder) / "google.json"
            source.write_text(json.dumps(_external_account(audience, path)), encoding="utf-8")
            # Of client libraries, and of gcloud, which gke-gcloud-auth-plugin asks.
            named |= dict.fromkeys(("GOOGLE_APPLICATION_CREDENTIALS", "CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE"), str(source))
        yield named


def _external_account(audience: str, token: Path) -> dict[str, object]:
    """Return Google's file of a workload outside of it (google.aip.dev/auth/4117)."""
    return {
        "type": "external_account",
        "audience": audience,
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": GOOGLE_TOKENS,
        "credential_source": {"file": str(token)},
    }


def _token(audience: str, environment: Mapping[str, str]) -> str:
    import requests

    address, bearer = environment.get(ADDRESS), environment.get(BEARER)
    if not address or not bearer:
        raise BadInputError(
            "This job gets no OIDC token",
            what=f"a token for {audience} is wanted, and {ADDRESS} is not set: this is no job of GitHub Actions with id-token: write",
            where=WHERE,
            next_step=f"run python -m azora_ci adopt again, which gives it to the jobs that may have it; outside of GitHub Actions, leave "
            f"{AUDIENCE} out",
        )

    def authorized(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["authorization"] = f"bearer {bearer}"  # as a plain header, a .netrc would replace it
        return request

    url = f"{address}{'&' if '?' in address else '?'}audience={quote(audience, safe='')}"
    try:
        answer = requests.get(url, auth=authorized, timeout=TIMEOUTS, allow_redirects=False, stream=True)
        http.take_body(answer, seconds=BODY_SECONDS)
    except (requests.RequestException, UnreadableError) as error:
        raise _refusal(audience, type(error).__name__) from error
    with expected_shape(lambda _: _refusal(audience, f"HTTP {answer.status_code}")):
        token = read_json(answer.content)["value"]
    if not isinstance(token, str) or not token.isascii() or answer.status_code != requests.codes.ok:
        raise _refusal(audience, f"HTTP {answer.status_code}, without a token")
    return token


def _refusal(audience: str, what: str) -> AzoraError:
    # Neither the address nor the answer is shown: both may hold what others could use.
    return UnreachableError(
        "GitHub gives no OIDC token",
        what=f"{what}, asked for {audience}",
        where=ADDRESS,
        next_step="re-run the job; githubstatus.com tells of trouble",
    )
