"""Lets the tests of a folder share a plain module of helpers."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
