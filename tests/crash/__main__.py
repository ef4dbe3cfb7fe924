"""`python -m crash --kills N --seed M`: kill, count, and end with 1 when something was lost."""

from __future__ import annotations

import argparse
import sys

import binaries
from control_plane import ControlPlane
from crash.campaign import SANDBOX, Campaign
from stack import Stack


def main() -> int:
    """Play; 1 when something was paid twice, is missing, or did not end."""
    parser = argparse.ArgumentParser(prog="python -m crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="processes to kill")
    parser.add_argument("--seed", type=int, default=1, help="of what is killed, and of the pauses")
    given = parser.parse_args()
    with (
        ControlPlane.start(binaries=binaries.ensure()) as plane,
        Stack.start(plane, sandbox_options=SANDBOX, say=_say) as stack,
    ):
        tally = Campaign(stack, seed=given.seed, say=_say).play(given.kills)
    _say(f"seed {given.seed}: " + "\n".join(tally.lines()))
    return 1 if tally.problems else 0


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
