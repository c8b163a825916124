"""Puts the folder that ``pip install --target .packages`` fills on the path; an image has its packages elsewhere."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / ".packages"))
