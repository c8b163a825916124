"""A strict S3 server on disk: it verifies what S3 verifies and can be told to fail.

It refuses what it does not implement (501) rather than pretend. Sources: the S3 API reference and the description of
Signature Version 4. Start it in-process (``S3Server``) or with ``python -m azora_ci.rehearsal.standins.s3 --help``.
"""

from azora_ci.rehearsal.standins.s3.faults import Fault, Faults
from azora_ci.rehearsal.standins.s3.server import S3Server
from azora_ci.rehearsal.standins.s3.signature import Credential
from azora_ci.rehearsal.standins.s3.store import Version

__all__ = ["Credential", "Fault", "Faults", "S3Server", "Version"]
