"""The set of seen ids against Python's own, through spilling and growing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinference.records import duplicates
from batchinference.records.duplicates import SeenIDs


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=3), max_size=200), st.integers(0, 5000))
def test_it_is_a_set(tmp_path_factory: pytest.TempPathFactory, ids: list[bytes], room: int) -> None:
    seen: set[bytes] = set()
    with SeenIDs(tmp_path_factory.mktemp("ids"), exact_bytes=room) as ids_seen:
        for custom_id in ids:
            assert ids_seen.add(custom_id) is (custom_id not in seen)
            seen.add(custom_id)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.binary(max_size=2), max_size=20), max_size=20), st.integers(0, 5000))
def test_adding_many_is_adding_each(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[list[bytes]], room: int
) -> None:
    seen: set[bytes] = set()
    with SeenIDs(tmp_path_factory.getbasetemp(), exact_bytes=room) as ids_seen:
        for block in blocks:
            want = []
            for position, custom_id in enumerate(block):
                if custom_id in seen:
                    want.append(position)
                seen.add(custom_id)
            assert ids_seen.add_all(block) == want


def test_it_stays_a_set_while_its_table_grows_and_gives_pages_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "_FIRST_SLOTS", 1 << 8)
    monkeypatch.setattr(duplicates, "_RESIDENT_BYTES", 0)
    count = 20_000
    with SeenIDs(tmp_path, exact_bytes=1000) as seen:
        assert all(seen.add(b'"id-%d"' % n) for n in range(count))
        assert not any(seen.add(b'"id-%d"' % n) for n in range(count))
        assert seen.add(b'"another"')
    assert list(tmp_path.iterdir()) == [], "the table has no name on disk"
