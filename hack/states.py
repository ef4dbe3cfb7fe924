"""Write the page of the state machines, or check that it is current: `states.py [--check]`.

The tables are data in `batchinference.core.transitions`; this page is how people read them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from batchinference.core.transitions import render

PAGE = Path(__file__).resolve().parent.parent / "docs" / "states.md"
_HEAD = """\
# States

Generated from the tables in `core/transitions.py` by `hack/states.py`; do not edit.

What `kubectl get` shows is derived from these by a written precedence (`core/view.py`): the run's
verdict once it is final, then Stalled, Cancelling, Suspended, then where the shards are.

"""


def page() -> str:
    """The page as it must be."""
    return _HEAD + render()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write docs/states.md.")
    parser.add_argument("--check", action="store_true", help="only say whether it is current")
    if parser.parse_args().check:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
            print(f"{PAGE}: not current; run hack/states.py", file=sys.stderr)
            sys.exit(1)
        return
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
