"""Run the S3 server until it is told to end: ``python -m azora_ci.rehearsal.standins.s3 FOLDER``."""

from __future__ import annotations

import argparse
import json
import signal
import threading
from pathlib import Path

from azora_ci.core.environment import process_environment
from azora_ci.rehearsal.standins.s3.server import S3Server


def main() -> None:
    """Serve; the key pair comes from the environment, so that no command line shows it."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (what clients must use)."
    )
    parser.add_argument("folder", type=Path, help="where objects are kept; it must not exist, or be empty")
    parser.add_argument("--bucket", action="append", default=[], help="bucket to make at the start, with versioning (repeatable)")
    parser.add_argument("--object-lock", action="store_true", help="those buckets get Object Lock")
    parser.add_argument("--faults", type=Path, help="JSON file with a list of faults, read again whenever it changes")
    parser.add_argument("--ready-file", type=Path, required=True, help="JSON file written once the server answers: endpoint")
    arguments = parser.parse_args()
    environ = process_environment()
    end = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: end.set())
    keys = environ["AWS_ACCESS_KEY_ID"], environ["AWS_SECRET_ACCESS_KEY"]
    with S3Server(arguments.folder, keys=keys, faults_file=arguments.faults) as server:
        for name in arguments.bucket:
            server.make_bucket(name, object_lock=arguments.object_lock)
        part = arguments.ready_file.with_suffix(".part")
        part.write_text(json.dumps({"endpoint": server.endpoint}), encoding="utf-8")
        part.replace(arguments.ready_file)
        end.wait()


if __name__ == "__main__":
    main()
