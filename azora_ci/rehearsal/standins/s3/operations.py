"""Names of S3 operations, as the API reference spells them."""

from __future__ import annotations

from collections.abc import Mapping

# (method, whether there is a key) -> operations by a word that the query must hold; the first that fits.
OPERATIONS = {
    ("PUT", True): {"uploadId": "UploadPart", "": "PutObject"},
    ("GET", True): {"uploadId": "ListParts", "": "GetObject"},
    ("HEAD", True): {"": "HeadObject"},
    ("POST", True): {"uploads": "CreateMultipartUpload", "uploadId": "CompleteMultipartUpload"},
    ("DELETE", True): {"uploadId": "AbortMultipartUpload", "": "DeleteObject"},
    ("HEAD", False): {"": "HeadBucket"},
    ("GET", False): {
        "versioning": "GetBucketVersioning",
        "object-lock": "GetObjectLockConfiguration",
        "encryption": "GetBucketEncryption",
        "lifecycle": "GetBucketLifecycleConfiguration",
        "uploads": "ListMultipartUploads",
        "list-type": "ListObjectsV2",
    },
}


def operation_of(method: str, key: str, query: Mapping[str, str]) -> str:
    """Return the name that the S3 API reference gives to a request, ``Other`` for what is not listed above."""
    choices = OPERATIONS.get((method, bool(key)), {})
    return next((name for word, name in choices.items() if not word or word in query), "Other")
