"""Files that hold what goes over the wire. REWRITE_GOLDEN=1 writes them anew; read the diff."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "golden"


def assert_golden(name: str, got: str) -> None:
    path = FOLDER / name
    if os.environ.get("REWRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(got)
    assert path.exists(), f"{name} is missing; REWRITE_GOLDEN=1 writes it"
    assert got == path.read_text()
