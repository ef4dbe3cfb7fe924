"""The table of events names the tests that prove it, and no test that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from contract.crds import ROOT

PAGE = ROOT / "docs" / "explanation" / "never-paid-twice.md"
CLUSTER = ROOT / "tests" / "cluster"
EVENTS = [f"E{n}" for n in range(1, 18)]
_TEST = re.compile(r"\[`(test_\w+)`\]\(([^)#]+)\)")


def table() -> dict[str, str]:
    """The rows of the table of events, by their number."""
    lines = re.findall(r"^\| (E\d+) \|(.*)$", PAGE.read_text(), flags=re.MULTILINE)
    assert len(lines) == len(dict(lines)), "an event has two rows"
    return dict(lines)


def defined(file: Path) -> set[str]:
    return set(re.findall(r"^(?:async )?def (test_\w+)\(", file.read_text(), flags=re.MULTILINE))


def rows_of_tests() -> Iterator[tuple[str, str]]:
    """Each event, and each test on a real control plane that bears its number."""
    for file in sorted(CLUSTER.glob("test_e*.py")):
        for name in sorted(defined(file)):
            if number := re.match(r"test_e(\d+)_", name):
                yield f"E{number[1]}", name


def test_every_event_has_a_row_that_names_a_test() -> None:
    rows = table()
    assert list(rows) == EVENTS
    assert [event for event in EVENTS if not _TEST.search(rows[event])] == []


def test_every_test_that_is_named_exists() -> None:
    named = _TEST.findall(PAGE.read_text())
    assert named
    missing = []
    for name, path in named:
        file = (PAGE.parent / path).resolve()
        if not file.is_file() or name not in defined(file):
            missing.append(f"{path}: {name}")
    assert missing == []


def test_every_test_of_an_event_is_named_in_its_row() -> None:
    rows, found = table(), list(rows_of_tests())
    assert len(found) > 20
    assert [f"{event}: {name}" for event, name in found if f"[`{name}`]" not in rows[event]] == []
