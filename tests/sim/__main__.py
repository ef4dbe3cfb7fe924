"""`python -m sim --seeds N --first-seed M`: play seeds and say which of them fail."""

from __future__ import annotations

import argparse
import os
import sys

from sim.campaign import Span, Totals, run_seeds
from sim.scenario import draw
from sim.stage import play


def main() -> int:
    """Play; 1 when a seed fails."""
    parser = argparse.ArgumentParser(prog="python -m sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many to play, at most")
    parser.add_argument("--minutes", type=float, help="begin no more after so many")
    parser.add_argument("--least", type=int, default=0, help="seeds to play even so")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    parser.add_argument("--whole", action="store_true", help="do not cut failing scenarios down")
    parser.add_argument("--stop-after", type=int, default=5, help="failures to print at most")
    given = parser.parse_args()
    _fix_hashes()
    if given.trace:
        for seed in range(given.first_seed, given.first_seed + given.seeds):
            print("\n".join(play(draw(seed)).trace))
    totals = Totals()
    most_s = None if given.minutes is None else given.minutes * 60
    span = Span(given.first_seed, given.seeds, given.least, most_s)
    for played in run_seeds(span, given.jobs, shrinks=not given.whole):
        totals.add(played)
        if played.story and len(totals.failing) <= given.stop_after:
            print(played.story, flush=True)
    print("\n".join(totals.lines()))
    return 1 if totals.failing else 0


def _fix_hashes() -> None:
    """Start again with fixed string hashes: sets of strings have an order then."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "sim", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
