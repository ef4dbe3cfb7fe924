"""Memory does not grow with the input, from staging to the manifest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LIFE = Path(__file__).with_name("life.py")

GROWTH_MB = 32
"""What may grow: the ids that are kept as they are (24 MiB), and the allocator's slack."""

PEAK_MB = 150


def life(folder: Path, megabytes: int, record_bytes: int) -> dict[str, Any]:
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, str(LIFE), str(folder), str(megabytes), str(record_bytes)],
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("record_bytes", [1_000, 20_000])
def test_twenty_times_the_input_takes_no_more_memory(tmp_path: Path, record_bytes: int) -> None:
    small = life(tmp_path / "small", 10, record_bytes)
    large = life(tmp_path / "large", 200, record_bytes)
    assert large["rows"] > 19 * small["rows"]
    assert large["shards"] > small["shards"]
    for step, peak in large["peak_mb"].items():
        assert peak <= PEAK_MB, step
        assert peak - small["peak_mb"][step] <= GROWTH_MB, step
