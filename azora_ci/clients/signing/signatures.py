"""Signatures in a bucket: beside a signed object ``<key>`` lies ``<key>.sig.json``, written once."""

from __future__ import annotations

from azora_ci.clients.s3.bucket import Bucket
from azora_ci.clients.s3.objects import AlreadyThereError, NotThereError
from azora_ci.clients.signing import envelope
from azora_ci.clients.signing.envelope import Signer
from azora_ci.clients.signing.kms import KmsSigner
from azora_ci.core.errors import NotTrueError

NONE = "none"
SUFFIX = ".sig.json"
LIMIT = 64 * 1024  # bytes of a signature; ours have 1 KB


class Signatures:
    """The signatures of one bucket's documents. Without a signer nothing is signed, and everything passes."""

    def __init__(self, bucket: Bucket, signer: Signer | None) -> None:
        self._bucket = bucket
        self._signer = signer

    @classmethod
    def of(cls, bucket: Bucket, signing: str) -> Signatures:
        """Return those of the configuration's ``[evidence] signing``: ``none`` or ``kms:<key>``, used with the bucket's credentials."""
        return cls(bucket, None if signing == NONE else KmsSigner(signing.removeprefix("kms:"), bucket.calls.settings))

    @property
    def name(self) -> str:
        """Return who signs, as in the configuration."""
        return self._signer.name if self._signer else NONE

    def keep(self, key: str, document: bytes, *, lock_days: int | None, lock_mode: str) -> None:
        """Sign a document that is stored under this key. Raises NotTrueError when a signature is there that does not fit it."""
        if self._signer is None:
            return
        data = envelope.sign(self._signer, self._bucket.url(key), document)
        try:
            self._bucket.put_once(signature_key(key), data, content_type="application/json", lock_days=lock_days, lock_mode=lock_mode)
        except AlreadyThereError:
            self.require(key, document)

    def doubt(self, key: str, document: bytes) -> str | None:
        """Return why a document that was read under this key is not believed; None: it is signed, or nothing is signed here."""
        if self._signer is None:
            return None
        try:
            signature = self._bucket.read(signature_key(key), most=LIMIT)
        except NotThereError:
            return f"it is not signed, and [evidence] signing is {self.name}"
        except NotTrueError as error:
            return f"its signature cannot be read: {error.what}"
        return envelope.doubt(signature, self._bucket.url(key), document, self._signer.public_key)

    def require(self, key: str, document: bytes) -> None:
        """Raise NotTrueError that names the document, unless it is believed."""
        reason = self.doubt(key, document)
        if reason is not None:
            raise NotTrueError(
                "A document is not signed as it must be",
                what=reason,
                where=self._bucket.url(key),
                next_step="find out who wrote it (bucket logs); it is not believed. Documents from before signing was turned on are not "
                "signed either: deploy with a new tag or dispatch, which makes new ones",
            )


def signature_key(key: str) -> str:
    """Return the key under which the signature of an object lies."""
    return f"{key}{SUFFIX}"
