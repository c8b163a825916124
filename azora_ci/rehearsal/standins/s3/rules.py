"""Three rules of S3 that SeaweedFS 4.48 does not hold; the proxy holds them in its place (S3 API reference).

CompleteMultipartUpload refuses an ``x-amz-mp-object-size`` that is not the size of the parts. PutObject and UploadPart refuse an
object with Object Lock parameters that comes without Content-MD5 or checksum. Of several completions of one key at once that say
``If-None-Match: *``, one wins: SeaweedFS looks first and writes later, so the proxy lets one completion after the other pass.
"""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

NO_CHECKSUM = "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters"
WRONG_SIZE = "The provided 'x-amz-mp-object-size' header does not match what was computed: "
LOCK = "x-amz-object-lock-"
CHECKSUM = re.compile(r"content-md5|x-amz-trailer|x-amz-checksum-(crc32|crc32c|crc64nvme|sha1|sha256)")


class MissingRules:
    """Remembers what the rules need to know of unfinished uploads, and judges requests by it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._completion = threading.Lock()
        self._parts: dict[str, dict[int, int]] = defaultdict(dict)  # upload id -> part number -> bytes
        self._locked: set[str] = set()  # ids of uploads with Object Lock parameters

    def turn(self, operation: str) -> AbstractContextManager[object]:
        """Return what to hold while the server works on a request."""
        return self._completion if operation == "CompleteMultipartUpload" else nullcontext()

    def refusal(self, operation: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes) -> str | None:
        """Return why S3 refuses a request (400 InvalidRequest), None when these rules allow it. Header names are in lower case."""
        upload = query.get("uploadId", "")
        with self._lock:
            locking = upload in self._locked or any(name.startswith(LOCK) for name in headers)
            if operation in {"PutObject", "UploadPart"} and locking and not any(CHECKSUM.fullmatch(name) for name in headers):
                return NO_CHECKSUM
            stated = headers.get("x-amz-mp-object-size")
            if operation != "CompleteMultipartUpload" or stated is None:
                return None
            numbers = [int(number) for number in re.findall(rb"<PartNumber>\s*([0-9]{1,5})\s*</PartNumber>", body)]
            size = sum(self._parts[upload].get(number, 0) for number in numbers)
        return None if stated == str(size) else f"{WRONG_SIZE}{size}"

    def note(self, operation: str, query: Mapping[str, str], headers: Mapping[str, str], answer: bytes) -> None:
        """Remember what an accepted request says of its upload."""
        upload = query.get("uploadId", "")
        with self._lock:
            if operation == "CreateMultipartUpload" and any(name.startswith(LOCK) for name in headers):
                self._locked |= {upload_id.decode() for upload_id in re.findall(rb"<UploadId>([^<]+)</UploadId>", answer)}
            elif operation == "UploadPart":
                size = headers.get("x-amz-decoded-content-length") or headers.get("content-length", "0")
                self._parts[upload][int(query["partNumber"])] = int(size)
            elif operation in {"CompleteMultipartUpload", "AbortMultipartUpload"}:
                self._parts.pop(upload, None)
                self._locked.discard(upload)
