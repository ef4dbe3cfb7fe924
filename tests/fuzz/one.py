"""One target under the fuzzer, in a process of its own: `python -m fuzz.one TARGET ARGUMENTS`.

The arguments are libFuzzer's. What is fuzzed is instrumented before it is imported.
"""

from __future__ import annotations

import os
import sys

import atheris

with atheris.instrument_imports(include=["batchinference", "fuzz.targets"]):
    from fuzz.targets import TARGETS


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    target, *arguments = sys.argv[1:]
    # To merge a corpus, libFuzzer starts the program anew that it takes itself to be.
    atheris.Setup([os.environ["FUZZ_PROGRAM"], *arguments], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
