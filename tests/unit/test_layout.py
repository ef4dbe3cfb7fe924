"""The shape of the source tree: what nobody may break by accident."""

from __future__ import annotations

import operator
import subprocess
import sys
from pathlib import Path

import batchinference
import states
from batchinference.core.transitions import render

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "operator" / "batchinference"
MOST_LINES = 430
"""About 400: a little slack, so that nobody cuts a docstring for it."""


def test_the_source_root_is_no_package() -> None:
    """`operator/__init__.py` would shadow the standard library's `operator` for everything that is
    started from the repository root, and it would die inside `collections`.
    """
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert [p.name for p in (ROOT / "operator").glob("*.py")] == [], "no loose modules either"


def test_importing_operator_gives_the_standard_library() -> None:
    assert operator.__file__ is not None
    assert ROOT not in Path(operator.__file__).resolve().parents or ".venv" in operator.__file__
    assert operator.eq(1, 1)


def test_importing_operator_from_the_repository_root_does_too() -> None:
    script = "import operator, sys; sys.stdout.write(operator.__file__); operator.eq"
    for folder in (ROOT, ROOT / "operator"):
        found = subprocess.run(
            [sys.executable, "-c", script],
            cwd=folder,
            env={"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert not found.stdout.startswith(str(ROOT / "operator"))


def test_the_package_under_test_is_the_one_in_the_tree() -> None:
    assert batchinference.__file__ is not None
    assert Path(batchinference.__file__).resolve().parent == PACKAGE


def test_no_module_is_too_long_to_be_read_in_one_go() -> None:
    long = {
        str(path.relative_to(PACKAGE)): lines
        for path in PACKAGE.rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert long == {}, "split it by concept"


def test_no_module_is_a_grab_bag() -> None:
    bags = {"utils", "util", "helpers", "manager", "base", "common", "misc"}
    assert [p.name for p in PACKAGE.rglob("*.py") if p.stem in bags] == []


def test_every_module_says_what_it_owns() -> None:
    silent = [
        str(p.relative_to(PACKAGE))
        for p in PACKAGE.rglob("*.py")
        if not p.read_text(encoding="utf-8").startswith(('"""', 'r"""'))
    ]
    assert silent == []


def test_the_page_of_the_state_machines_is_current() -> None:
    page = (ROOT / "docs" / "states.md").read_text(encoding="utf-8")
    assert page == states.page(), "run hack/states.py"
    assert page.endswith(render())
