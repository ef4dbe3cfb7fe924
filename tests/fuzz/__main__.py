"""`make fuzz`: every target for a while, from the corpus on; what was found is kept in the corpus.

Prints for each target the executions, the size of the corpus and what its inputs reach. A finding -
an error that nobody expects, a hang of ten seconds, half a gigabyte of memory - is written to
build/fuzz and told; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from fuzz import corpus
from fuzz.targets import TARGETS
from fuzz.test_corpus import HOSTILE

WORK = Path(__file__).parents[2] / "build" / "fuzz"
LIMITS = ("-timeout=10", "-rss_limit_mb=768", "-max_len=65536", "-verbosity=1")


def run(target: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One run of the fuzzer, with what it says."""
    program = WORK / target / "program"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fuzz.one {target} "$@"\n')
    program.chmod(0o755)
    return subprocess.run(
        [str(program), *LIMITS, *arguments],
        env={**os.environ, "FUZZ_PROGRAM": str(program)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )


def fuzz(target: str, seconds: int) -> tuple[str, bool]:
    """A target for so long; a line about it, and whether nothing was found."""
    work = WORK / target
    shutil.rmtree(work, ignore_errors=True)
    found, merged = work / "found", work / "merged"
    corpus.unpack([*corpus.read(target), *HOSTILE], found)
    merged.mkdir()
    artifacts = f"-artifact_prefix={work}/finding-"
    began = time.monotonic()
    said = run(target, f"-max_total_time={seconds}", artifacts, "-print_final_stats=1", str(found))
    took = time.monotonic() - began
    if said.returncode:
        return f"{target}: FOUND something, see {work}\n{said.stdout[-6000:]}", False
    merge = run(target, "-merge=1", artifacts, str(merged), str(found))
    if merge.returncode:
        return f"{target}: the merge of the corpus failed\n{merge.stdout[-6000:]}", False
    kept = corpus.pack(merged)
    corpus.write(target, kept)
    executed = _number(r"stat::number_of_executed_units:\s*(\d+)", said.stdout)
    reached = _number(r"cov: (\d+)", said.stdout)
    return (
        (
            f"{target}: {executed} executions in {took:.0f} s, reaches {reached}; corpus of "
            f"{len(kept)} inputs, {sum(map(len, kept))} bytes"
        ),
        True,
    )


def _number(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0


def main() -> int:
    """Fuzz; 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m fuzz")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--target", choices=sorted(TARGETS), action="append")
    options = parser.parse_args()
    is_fine = True
    for target in options.target or TARGETS:
        line, fine = fuzz(target, options.seconds)
        print(line, flush=True)
        is_fine = is_fine and fine
    print("nothing was found" if is_fine else "something was found, see above")
    return 0 if is_fine else 1


if __name__ == "__main__":
    sys.exit(main())
