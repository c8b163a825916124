"""A job; a worker where it is called scheduler. ``$FLAGS/<service>.stamps`` gets a line for each start and each end.

``$FLAGS/<version>.<service>.<behaviour>``: wait (a job goes on while the flag is there), fail (exit code 3), deaf (SIGTERM is ignored).
"""

import os
import signal
import sys
import time
from pathlib import Path

FLAGS, VERSION, SERVICE = Path(os.environ["FLAGS"]), os.environ["VERSION"], os.environ["SERVICE"]


def flag(behaviour):
    return (FLAGS / f"{VERSION}.{SERVICE}.{behaviour}").exists()


def stamp(event):
    with (FLAGS / f"{SERVICE}.stamps").open("a", encoding="utf-8") as file:
        file.write(f"{event} {VERSION} {os.getpid()} {time.time():.6f}\n")


def end(*_):
    if not flag("deaf"):
        stamp("stop")
        os._exit(143)


signal.signal(signal.SIGTERM, end)
stamp("start")
print(f"{SERVICE} {VERSION} works; its secret has {len(os.environ.get('SERVICE_SECRET', ''))} characters", flush=True)
if flag("fail"):
    print("it goes wrong", flush=True)
while not flag("fail") and (SERVICE == "scheduler" or flag("wait")):
    time.sleep(0.02)
stamp("stop")
sys.exit(3 if flag("fail") else 0)
