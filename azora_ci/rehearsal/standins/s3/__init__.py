"""A real S3 server (SeaweedFS) on loopback, behind a proxy that can be told to fail.

Start it in-process (``S3Server``) or with ``python -m azora_ci.rehearsal.standins.s3 --help``.
"""

from azora_ci.rehearsal.standins.s3.faults import Fault, Faults
from azora_ci.rehearsal.standins.s3.server import S3Server

__all__ = ["Fault", "Faults", "S3Server"]
