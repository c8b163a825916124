"""A signing key in AWS KMS: the private key never leaves it. Needs kms:Sign of who writes, kms:GetPublicKey of who reads.

botocore reads an answer whatever its size, and parses it whatever its depth: here it gets bodies that were read within limits.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, cast

from azora_ci.clients import http
from azora_ci.core.clock import Clock
from azora_ci.core.documents import Limits, UnreadableError, expected_shape, read_json
from azora_ci.core.errors import BadInputError, UnreachableError
from azora_ci.core.settings import Aws

ALGORITHM = "ECDSA_SHA_256"
ANSWER = Limits(size=64 * 1024, values=1000, unique_keys=False)  # KMS answers with about 1 KB
ANSWER_SECONDS = 20.0
_UNUSABLE = {"NotFoundException", "DisabledException", "InvalidKeyUsageException", "UnsupportedOperationException", "ValidationException"}
_REQUIRED = {"get_public_key": ("PublicKey",), "sign": ("Signature",)}  # operation -> what its answer must have
_DENIED = {"AccessDeniedException", "UnrecognizedClientException", "InvalidSignatureException", "ExpiredTokenException"}


class KmsSigner:
    """A P-256 key of KMS. Methods raise UnreachableError, or BadInputError for a key that is missing, no P-256 key, or not allowed."""

    def __init__(self, key_id: str, settings: Aws) -> None:
        self.name = f"kms:{key_id}"
        self._key_id = key_id
        self._settings = settings

    @cached_property
    def public_key(self) -> bytes:
        """Return the public key in DER, requested once."""
        answer = self._call("get_public_key")
        if ALGORITHM not in (answer.get("SigningAlgorithms") or ()):
            raise _unusable(self.name, f"it is no ECC_NIST_P256 key for signing: {answer.get('KeySpec')}, {answer.get('KeyUsage')}")
        return _p256(answer["PublicKey"], self.name)

    def sign(self, message: bytes) -> bytes:
        """Return the signature (DER) over the message's SHA-256."""
        answer = self._call("sign", Message=message, MessageType="RAW", SigningAlgorithm=ALGORITHM)
        if not isinstance(answer["Signature"], bytes):
            raise _unreachable(self.name, "its answer to sign holds no signature")
        return answer["Signature"]

    @cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        settings, keys = self._settings, dict[str, str]()
        if settings.aws_access_key_id is not None and settings.aws_secret_access_key is not None:
            keys = {
                "aws_access_key_id": settings.aws_access_key_id.reveal(),
                "aws_secret_access_key": settings.aws_secret_access_key.reveal(),
            }
            if settings.aws_session_token is not None:
                keys["aws_session_token"] = settings.aws_session_token.reveal()
        config = Config(connect_timeout=10, read_timeout=20, retries={"total_max_attempts": 4, "mode": "standard"})
        client = boto3.session.Session().client("kms", region_name=settings.aws_region, config=config, **keys)
        session = client._endpoint.http_session  # no public name; it has the proxies and certificates of the environment

        def send(request: Any, **_: Any) -> Any:
            request.stream_output = True  # the body is left unread
            return _within_limits(session.send(request))

        client.meta.events.register("before-send.kms", send)
        return client

    def _call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        from botocore.exceptions import BotoCoreError, ClientError

        other_shape = "its answer to {} has another shape: {}"
        try:
            with expected_shape(lambda problem: _unreachable(self.name, other_shape.format(operation, problem))):
                answer = getattr(self._client, operation)(KeyId=self._key_id, **parameters)
                required = {name: answer[name] for name in _REQUIRED[operation]}
            return cast("dict[str, Any]", answer | required)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in _UNUSABLE | _DENIED:
                raise _unusable(self.name, f"{operation}: {error}") from error
            raise _unreachable(self.name, str(error)) from error
        except BotoCoreError as error:
            raise _unreachable(self.name, str(error)) from error


def _within_limits(answer: Any) -> Any:
    """Return botocore's answer with its body read. Raises UnreadableError beyond a limit; of an error only the body is left out."""
    body = http.read_within(answer.raw, ANSWER.size + 1, clock=Clock(), seconds=ANSWER_SECONDS)
    try:
        if not isinstance(read_json(body, ANSWER), dict):
            raise UnreadableError("no JSON object")
    except UnreadableError:
        if answer.status_code < 300:
            raise
        body = b"{}"
    answer._content = body  # no public name: without it botocore would read on
    return answer


def _p256(key: object, name: str) -> bytes:
    """Return the public key after looking at it: of documents it is said later that *their* signature is wrong."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        loaded = serialization.load_der_public_key(key) if isinstance(key, bytes) else None
    except (ValueError, UnsupportedAlgorithm):
        loaded = None
    if not isinstance(loaded, ec.EllipticCurvePublicKey) or not isinstance(loaded.curve, ec.SECP256R1):
        raise _unusable(name, "what it gives as its public key is no P-256 key")
    assert isinstance(key, bytes)  # noqa: S101 - it was loaded
    return key


def _unusable(name: str, what: str) -> BadInputError:
    return BadInputError(
        "The signing key cannot be used",
        what=what,
        where=f"[evidence] signing = {name!r}",
        next_step="name an asymmetric KMS key (ECC_NIST_P256, SIGN_VERIFY) of this region; allow kms:Sign and kms:GetPublicKey to the role",
    )


def _unreachable(name: str, what: str) -> UnreachableError:
    return UnreachableError(
        "KMS cannot be reached",
        what=what[:1000],
        where=f"[evidence] signing = {name!r}",
        next_step="re-run the job when KMS answers; nothing unsigned is believed meanwhile",
    )
