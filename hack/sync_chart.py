"""Copy the resource definitions of ``crds/`` into the chart, or check that the copy is current.

``crds/`` is the contract that people review; the chart can only read files of its own folder. The
copy is byte for byte; the chart's template adds the labels and annotations.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

_ROOT = Path(__file__).resolve().parent.parent
SOURCE = _ROOT / "crds"
COPY = _ROOT / "charts" / "batch-inference-operator" / "files" / "crds"


def drift(source: Path = SOURCE, copy: Path = COPY) -> list[str]:
    """Say how the copy differs from its source, one line per file; empty when it does not."""
    wanted, kept = _contents(source), _contents(copy)
    reasons = [f"{copy / name}: missing" for name in sorted(wanted.keys() - kept.keys())]
    reasons += [f"{copy / name}: not in {source}" for name in sorted(kept.keys() - wanted.keys())]
    reasons += [
        f"{copy / name}: differs from {source / name}"
        for name in sorted(wanted.keys() & kept.keys())
        if wanted[name] != kept[name]
    ]
    return reasons


def sync(source: Path = SOURCE, copy: Path = COPY) -> None:
    """Make the copy equal to its source.

    Raises:
        ValueError: a file is not exactly one CustomResourceDefinition, which the template needs.
    """
    wanted = _contents(source)
    for name, content in wanted.items():
        documents = list(yaml.safe_load_all(content))
        kinds = [document.get("kind") for document in documents if isinstance(document, dict)]
        if kinds != ["CustomResourceDefinition"]:
            raise ValueError(
                f"{source / name}: one CustomResourceDefinition per file is needed, found {kinds}"
            )
    copy.mkdir(parents=True, exist_ok=True)
    for name in _contents(copy).keys() - wanted.keys():
        (copy / name).unlink()
    for name, content in wanted.items():
        (copy / name).write_bytes(content)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.yaml"))}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Copy crds/ into the chart.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail on a difference")
    if not parser.parse_args().check:
        sync()
    elif reasons := drift():
        sys.exit("\n".join([*reasons, "Run `python hack/sync_chart.py` and commit the result."]))


if __name__ == "__main__":
    main()
