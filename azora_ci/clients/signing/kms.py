"""A signing key in AWS KMS: the private key never leaves it. Needs kms:Sign of who writes, kms:GetPublicKey of who reads."""

from __future__ import annotations

from functools import cached_property
from typing import Any, cast

from azora_ci.core.errors import BadInputError, UnreachableError
from azora_ci.core.settings import Aws

ALGORITHM = "ECDSA_SHA_256"
_UNUSABLE = {"NotFoundException", "DisabledException", "InvalidKeyUsageException", "UnsupportedOperationException", "ValidationException"}
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
        if ALGORITHM not in answer.get("SigningAlgorithms", ()):
            raise _unusable(self.name, f"it is no ECC_NIST_P256 key for signing: {answer.get('KeySpec')}, {answer.get('KeyUsage')}")
        return cast(bytes, answer["PublicKey"])

    def sign(self, message: bytes) -> bytes:
        """Return the signature (DER) over the message's SHA-256."""
        return cast(bytes, self._call("sign", Message=message, MessageType="RAW", SigningAlgorithm=ALGORITHM)["Signature"])

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
        return boto3.session.Session().client("kms", region_name=settings.aws_region, config=config, **keys)

    def _call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return cast("dict[str, Any]", getattr(self._client, operation)(KeyId=self._key_id, **parameters))
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in _UNUSABLE | _DENIED:
                raise _unusable(self.name, f"{operation}: {error}") from error
            raise _unreachable(self.name, error) from error
        except BotoCoreError as error:
            raise _unreachable(self.name, error) from error


def _unusable(name: str, what: str) -> BadInputError:
    return BadInputError(
        "The signing key cannot be used",
        what=what,
        where=f"[evidence] signing = {name!r}",
        next_step="name an asymmetric KMS key (ECC_NIST_P256, SIGN_VERIFY) of this region; allow kms:Sign and kms:GetPublicKey to the role",
    )


def _unreachable(name: str, error: Exception) -> UnreachableError:
    return UnreachableError(
        "KMS cannot be reached",
        what=str(error),
        where=f"[evidence] signing = {name!r}",
        next_step="re-run the job when KMS answers; nothing unsigned is believed meanwhile",
    )
