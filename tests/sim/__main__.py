"""`python -m sim --seeds N --first-seed M`: play seeds and say which of them fail."""

from __future__ import annotations

import argparse
import os
import sys

from sim.scenario import draw
from sim.shrink import shrink, story
from sim.stage import play


def main() -> int:
    """Play; 1 when a seed fails."""
    parser = argparse.ArgumentParser(prog="python -m sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many to play")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    parser.add_argument("--whole", action="store_true", help="do not cut failing scenarios down")
    parser.add_argument("--stop-after", type=int, default=5, help="failures to print at most")
    given = parser.parse_args()
    _fix_hashes()
    failures = []
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        report = play(draw(seed))
        if given.trace:
            print("\n".join(report.trace))
        if not report.failed:
            continue
        failures.append(seed)
        if len(failures) <= given.stop_after:
            small = report if given.whole else shrink(report)
            print(story(small), flush=True)
    if failures:
        print(f"failing seeds: {failures}")
    print(f"{given.seeds} seeds run, {len(failures)} failures")
    return 1 if failures else 0


def _fix_hashes() -> None:
    """Start again with fixed string hashes: sets of strings have an order then."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "sim", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
