"""The inputs that the fuzzer found worth keeping: one file for each target, one input in a line.

As base64, since they hold every byte there is. They are kept small by the fuzzer's own merge, which
leaves one input for everything that can be reached.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"


def read(target: str) -> list[bytes]:
    """The inputs of a target; none where nothing was kept yet."""
    file = FOLDER / f"{target}.txt"
    return [base64.b64decode(line) for line in file.read_text().split()] if file.exists() else []


def write(target: str, inputs: Iterable[bytes]) -> None:
    """Keep these and no others, in an order that does not depend on how they were found."""
    FOLDER.mkdir(exist_ok=True)
    lines = sorted({base64.b64encode(data).decode() for data in inputs}, key=lambda t: (len(t), t))
    (FOLDER / f"{target}.txt").write_text("".join(f"{line}\n" for line in lines if line))


def unpack(inputs: Iterable[bytes], folder: Path) -> None:
    """As files, which is how the fuzzer reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    for data in inputs:
        (folder / hashlib.sha256(data).hexdigest()).write_bytes(data)


def pack(folder: Path) -> list[bytes]:
    """The contents of the files of a folder."""
    return [file.read_bytes() for file in folder.iterdir() if file.is_file()]
