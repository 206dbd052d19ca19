"""The command `tessera`: main.py of the clone that `pip install -e .` was run in, from any folder.

It is the only name that the installation adds. The rooms (`data`, `models`, ...) stay names of the clone.
"""

import pathlib
import runpy
import sys

MAIN = pathlib.Path(__file__).resolve().parents[2] / "main.py"


def main() -> None:
    """Runs main.py as `python main.py` does."""
    if not MAIN.is_file():
        sys.exit(f"error: {MAIN} is missing; tessera runs from its clone: run `pip install -e .` there.")
    sys.path.insert(0, str(MAIN.parent))
    sys.argv[0] = "tessera"
    runpy.run_path(str(MAIN), run_name="__main__")
