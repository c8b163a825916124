"""Run the S3 server until it is told to end: ``python -m azora_ci.rehearsal.standins.s3 FOLDER``."""

from __future__ import annotations

import argparse
import json
import signal
import threading
from pathlib import Path

from azora_ci.core.environment import process_environment
from azora_ci.rehearsal.standins.s3.server import S3Server
from azora_ci.rehearsal.standins.s3.signature import Credential


def main() -> None:
    """Serve; the key pair and the control token come from the environment, so that no command line shows them."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (what clients must use), S3_CONTROL_TOKEN (opens /-/faults, "
        "/-/flip and /-/state to POST with the header x-control-token).",
    )
    parser.add_argument("folder", type=Path, help="where buckets are kept")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--region", default="us-east-1")
    parser.add_argument("--bucket", action="append", default=[], help="bucket to make at the start (repeatable)")
    parser.add_argument("--object-lock", action="store_true", help="those buckets get Object Lock and versioning")
    parser.add_argument("--encryption", choices=("AES256", "aws:kms"), help="their default encryption (ETags under aws:kms are no MD5)")
    parser.add_argument("--faults", type=Path, help="JSON file with a list of faults, read again whenever it changes")
    parser.add_argument("--ready-file", type=Path, help="JSON file written once the server answers: endpoint, port")
    chosen = parser.parse_args()
    environ = process_environment()
    server = S3Server(
        chosen.folder,
        credentials=(Credential(environ.get("AWS_ACCESS_KEY_ID", "standin"), environ.get("AWS_SECRET_ACCESS_KEY", "standin-secret")),),
        region=chosen.region,
        port=chosen.port,
        control_token=environ.get("S3_CONTROL_TOKEN", ""),
        faults_file=chosen.faults,
    )
    end = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: end.set())
    with server:
        for name in chosen.bucket:
            server.make_bucket(name, object_lock=chosen.object_lock, encryption=chosen.encryption)
        print(f"S3 at {server.endpoint}, kept in {chosen.folder}", flush=True)
        if chosen.ready_file is not None:
            ready = chosen.ready_file.with_suffix(".part")
            ready.write_text(json.dumps({"endpoint": server.endpoint, "port": server.port}), encoding="utf-8")
            ready.replace(chosen.ready_file)
        end.wait()


if __name__ == "__main__":
    main()
