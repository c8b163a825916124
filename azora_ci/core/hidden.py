"""Keep other processes of this user from reading this one's environment and memory (``/proc/<pid>/environ``).

Importing this module does it: entry points import it before anything else, so that no library is loaded before. A process
that may become root, as on GitHub's own runners, is not stopped by this; where there is no prctl (macOS) there is no ``/proc`` either.
"""

import contextlib
import ctypes

PR_SET_DUMPABLE = 4  # prctl(2), Linux

with contextlib.suppress(AttributeError):
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
