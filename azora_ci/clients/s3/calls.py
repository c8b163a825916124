"""Calls to S3: one client from explicit settings, retries, and errors that name the next step.

botocore's own retries are off: a lost answer to a conditional write must be distinguished from a refusal, so this module
repeats the calls itself.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from azora_ci.core.clock import Clock
from azora_ci.core.errors import AzoraError, BadInputError, UnreachableError
from azora_ci.core.settings import Aws

# Answers after which the same request may succeed. BadDigest and similar codes mean that bytes were damaged in transit.
TRANSIENT = frozenset(
    {
        "BadDigest", "IncompleteBody", "InternalError", "OperationAborted", "PriorRequestNotComplete", "RequestTimeout",
        "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "XAmzContentSHA256Mismatch",
    }
)  # fmt: skip
EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired", "InvalidToken"})
UNKNOWN_KEY = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidClientTokenId"})
DENIED = frozenset({"403", "AccessDenied", "AccountProblem", "AllAccessDisabled", "Forbidden"})
NOT_IMPLEMENTED = 501  # an answer of 5xx that stays
ABSENT = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchVersion"})


@dataclass(frozen=True)
class Patience:
    """How long a call may take: attempts, seconds between them (doubled, capped, with jitter) and seconds per attempt."""

    attempts: int = 6
    first_wait: float = 0.25
    longest_wait: float = 10.0
    connect_timeout: float = 10.0
    read_timeout: float = 60.0

    def wait_before(self, attempt: int) -> float:
        """Return the seconds to wait before attempt 2, 3, …: doubled each time, then reduced at random by up to half."""
        longest = min(self.longest_wait, self.first_wait * 2.0 ** (attempt - 2))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads retries, protects no secret


class CallRefusedError(Exception):
    """An error code that the caller expects: ``code``, and whether an earlier attempt's answer was lost."""

    def __init__(self, code: str, *, answer_lost: bool) -> None:
        super().__init__(code)
        self.code = code
        self.answer_lost = answer_lost


class UnexpectedAnswerError(UnreachableError):
    """The store answered with an error that no repetition removes and nothing here expects: it may lack what was asked of it."""


class Calls:
    """Makes S3 calls by name. Safe to share between threads, as botocore's clients are."""

    def __init__(
        self, settings: Aws, *, clock: Clock, patience: Patience, say: Callable[[str], None] | None = None, connections: int = 8
    ) -> None:
        self.settings = settings
        self._clock = clock
        self._patience = patience
        self._say = say or (lambda _line: None)
        self.endpoint = settings.aws_endpoint_url_s3 or f"S3 in {settings.aws_region}"
        self.attempts = patience.attempts
        self._client = _client(settings, patience, connections)

    def call(
        self,
        operation: str,
        where: str,
        *,
        expected: frozenset[str] = frozenset(),
        transient: frozenset[str] = frozenset(),
        stop: threading.Event | None = None,
        persistent: bool = False,
        **parameters: Any,
    ) -> dict[str, Any]:
        """Make one call, repeated while it may still succeed, and return the answer.

        ``operation`` is boto3's method name, ``where`` the object's name in errors, ``expected`` the error codes that are raised
        as RefusedError, ``transient`` further codes that are repeated. Setting ``stop`` ends the waiting between attempts;
        ``persistent`` doubles their number, for calls whose failure would lose an hour of work.
        Raises UnreachableError (exit 3) or BadInputError (exit 2).
        """
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        method: Callable[..., dict[str, Any]] = getattr(self._client, operation)
        answer_lost = False
        for attempt in self._clock.attempts(self.attempts * (2 if persistent else 1), stop=stop):
            try:
                return method(**parameters)
            except ClientError as error:
                problem: Exception = error
                code, status = _code(error), _status(error)
                if code in expected:
                    raise CallRefusedError(code, answer_lost=answer_lost) from error
                repeatable = (status >= 500 and status != NOT_IMPLEMENTED) or code in TRANSIENT | transient
                answer_lost = answer_lost or (repeatable and status >= 500)
            except (BotoCoreError, ResponseParserError) as error:
                problem, code = error, type(error).__name__
                repeatable = _connection_failed(error)
                answer_lost = answer_lost or repeatable
            if not repeatable or attempt.last:
                break
            attempt.wait = self._patience.wait_before(attempt.number + 1)
            self._say(f"{where}: {operation} got {code}; attempt {attempt.number + 1} of {attempt.most} in {attempt.wait:.1f} s")
        raise failure(problem, operation, where, attempt.number) from problem


def _client(settings: Aws, patience: Patience, connections: int) -> Any:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    endpoint = settings.aws_endpoint_url_s3
    encrypted = endpoint is None or endpoint.startswith("https:")
    options: dict[str, Any] = {
        # Uploads carry a checksum of our own; stores without checksums refuse those that botocore would add.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "connect_timeout": patience.connect_timeout,
        "read_timeout": patience.read_timeout,
        "max_pool_connections": connections,
        "user_agent_extra": "azora-ci",
        # TLS and the part's checksum protect the body: hashing it once more for the signature costs a third of a core.
        "s3": {"addressing_style": "path" if endpoint else "auto", "payload_signing_enabled": not encrypted},
    }
    key, secret, token = settings.aws_access_key_id, settings.aws_secret_access_key, settings.aws_session_token
    keys: dict[str, Any] = {}
    if key is not None and secret is not None:
        keys = {"aws_access_key_id": key.reveal(), "aws_secret_access_key": secret.reveal()}
        keys["aws_session_token"] = token.reveal() if token else None
    try:
        return boto3.session.Session().client(
            "s3", region_name=settings.aws_region, endpoint_url=endpoint, config=Config(**options), **keys
        )
    except (BotoCoreError, ValueError) as error:
        raise BadInputError(
            "S3 cannot be used with these settings",
            what=str(error),
            where="AWS_ENDPOINT_URL_S3, AWS_REGION and AWS_* keys",
            next_step="correct the variables, or assume the role before this step",
        ) from error


def failure(problem: Exception, operation: str, where: str, attempts: int) -> AzoraError:
    """Return the error for a call that failed finally, with the next step for its cause."""
    code = _code(problem)
    details = f"{operation} failed after {attempts} attempt{'s' if attempts > 1 else ''}: {_text(problem)}"
    # An answer to HEAD has no body, so an expired token shows only as status 400.
    if code in EXPIRED or (operation.startswith("head_") and code == "400"):
        return UnreachableError(
            "AWS credentials have expired",
            what=details,
            where=where,
            next_step="assume the role again (aws-actions/configure-aws-credentials) before this step, then re-run the job",
        )
    if code in UNKNOWN_KEY or code in {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}:
        return BadInputError(
            "AWS credentials are not accepted",
            what=details,
            where=where,
            next_step="check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the role that the workflow assumes",
        )
    if code in DENIED:
        return UnreachableError(
            "S3 denies access",
            what=details,
            where=where,
            next_step="allow this operation in the role's policy and in the bucket's policy, then re-run the job",
        )
    if code == "NoSuchBucket" or (operation == "head_bucket" and code == "404"):
        return BadInputError(
            "The bucket does not exist", what=details, where=where, next_step="create the bucket, or correct location under [backup]"
        )
    if code in ABSENT:
        return BadInputError(
            "The object does not exist", what=details, where=where, next_step="check the key and, where one is named, the version"
        )
    if _status(problem) == NOT_IMPLEMENTED or code == "NotImplemented":
        return UnexpectedAnswerError(
            f"The store lacks {operation}",
            what=details,
            where=where,
            next_step="use a store that has it, or ask its vendor for a newer version",
        )
    connected = not _connection_failed(problem)
    return (UnexpectedAnswerError if connected else UnreachableError)(
        "S3 did not answer as it should" if connected else "S3 could not be reached",
        what=details,
        where=where,
        next_step="re-run the job; if it persists, check AWS_ENDPOINT_URL_S3, the network and the state of the store",
    )


def _code(problem: Exception) -> str:
    response = getattr(problem, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code", "")) or str(_status(problem))
    return type(problem).__name__


def _status(problem: Exception) -> int:
    response = getattr(problem, "response", None)  # botocore's errors without an answer have it, too: None
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) if isinstance(response, dict) else 0


def _text(problem: Exception) -> str:
    response = getattr(problem, "response", None)
    if isinstance(response, dict):
        return f"HTTP {_status(problem)} {_code(problem)} {response.get('Error', {}).get('Message', '')}".strip()
    return f"{type(problem).__name__}: {problem}"


def _connection_failed(problem: Exception) -> bool:
    """Return whether no answer arrived, or no readable answer."""
    from botocore.exceptions import ConnectionError as NoConnectionError
    from botocore.exceptions import HTTPClientError
    from botocore.parsers import ResponseParserError

    return isinstance(problem, (HTTPClientError, NoConnectionError, ResponseParserError))
