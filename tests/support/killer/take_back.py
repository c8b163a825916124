"""Takes 1.1.0 back from a production of local processes, as rollback does under its lock. Arguments: configuration, its folder."""

import io
import sys
from pathlib import Path

from azora_ci.core import config
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.targets.base import Owner, TargetContext
from azora_ci.targets.local_processes.target import LocalProcesses
from tests.support.edge_world import NEW

path, folder = map(Path, sys.argv[1:])
processes = Processes(JobLog(Actions(stream=io.StringIO()), Clock()))
target = LocalProcesses(TargetContext(config.load(path), processes, Clock(), folder / "back", 30.0))
with target.locked(Owner(NEW, "https://runs.example/3", "tests", fence="a test")):
    returned = target.abort(target.current().releases[NEW].release, "a test")
print(returned.detail)
sys.exit(0 if returned.proved else 1)
