"""Python runs this first where its folder is on PYTHONPATH: the process kills itself at the point that KILL_AT names.

KILL_AT: ``before|after <module>:<Class>.<function> <word> …``; of the calls whose arguments, printed, have all the words, the first one.
"""

import functools
import importlib
import os
import signal


def install(point):
    moment, place, *words = point.split()
    module, _, path = place.partition(":")
    owner, name = getattr(importlib.import_module(module), path.partition(".")[0]), path.partition(".")[2]
    original = getattr(owner, name)

    @functools.wraps(original)
    def killing(self, *args, **kwargs):
        hit = all(word in f"{args}{kwargs}" for word in words)
        if hit and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(self, *args, **kwargs)
        if hit:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, killing)


if os.environ.get("KILL_AT"):
    install(os.environ.pop("KILL_AT"))
