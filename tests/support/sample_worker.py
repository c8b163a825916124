"""A small real worker for rollout tests. It notes in ``$FLAGS/<service>.log`` when it starts and when it is told to end.

``$FLAGS/<version>.<service>.ends``: it ends by itself, with exit code 3, as soon as the file is there. Its image's HEALTHCHECK fails while
``$FLAGS/<version>.<service>.unhealthy`` is there.
"""

import os
import signal
import sys
import time
from pathlib import Path

FLAGS, VERSION, SERVICE = Path(os.environ["FLAGS"]), os.environ["VERSION"], os.environ["SERVICE"]


def flag(behaviour: str) -> bool:
    return (FLAGS / f"{VERSION}.{SERVICE}.{behaviour}").exists()


def note(event: str) -> None:
    with (FLAGS / f"{SERVICE}.log").open("a") as log:
        log.write(f"{event} {VERSION} secret-{len(os.environ.get('SERVICE_SECRET', ''))}\n")


def end(*_: object) -> None:
    note("ends")
    os._exit(0)


if "check" in sys.argv:
    sys.exit(flag("unhealthy"))
signal.signal(signal.SIGTERM, end)
note("starts")
print(f"{SERVICE} {VERSION} starts with {sys.argv[1:]}", flush=True)
while not flag("ends"):
    time.sleep(0.02)
note("ends by itself")
sys.exit(3)
