"""The reference page says what is there, and the defaults it has."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from batchinference.sandbox import faults, main, settings, spells

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "sandbox.md"


def section(title: str) -> str:
    return re.split(r"^#+ ", PAGE.read_text().partition(f"# {title}\n")[2], flags=re.MULTILINE)[0]


def rows(title: str) -> dict[str, str]:
    """Names in the first column of a section's table, with their cell of the second."""
    found = {}
    for line in re.findall(r"^\|.*$", section(title), flags=re.MULTILINE):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        names = re.findall(r"`([^`]+)`", cells[0])
        values = cells[1].split(", ") if len(names) > 1 else [cells[1] if len(cells) > 1 else ""]
        found.update(dict(zip(names, values, strict=True)) if names else {})
    return found


@pytest.mark.parametrize(
    ("title", "kind"),
    [("openai", settings.OpenAISettings), ("bedrock", settings.BedrockSettings)],
)
def test_every_setting_stands_there_with_its_default(title, kind):
    defaults = kind()
    expected = {}
    for one in fields(kind):
        value = getattr(defaults, one.name)
        expected[one.name] = value if isinstance(value, str) else json.dumps(value)
    assert rows(title) == expected


def test_every_magic_word_and_fault_stands_there():
    words = {name.removeprefix("SANDBOX:") for name in rows("Magic words")}
    assert words == set(spells.VOCABULARY)
    assert set(rows("Faults")) == set(get_args(faults.Kind))


def test_every_option_stands_there():
    parser = main._parser()
    options = {action.option_strings[-1] for action in parser._actions} - {"--help"}
    assert {name.split()[0] for name in rows("Options")} == options
