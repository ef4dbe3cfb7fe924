"""Splitting bytes into lines, by table and against the obvious way of doing it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinference.records.lines import BOM, Block, Oversized, blocks, plain_lines


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


def lines_of(data: bytes, chunk: int, most: int = 1000) -> list[bytes | Oversized]:
    return [line for block in blocks(pieces(data, chunk), most) for line in block.lines]


def offset_of(block: Block, index: int) -> int:
    """Where a line of the block starts, in bytes of the object."""
    return block.offset + sum(len(line) + 1 for line in block.lines[:index])


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("reason", "data", "want"),
    [
        ("nothing is no line", b"", []),
        ("a final newline starts no line", b"a\n", [b"a"]),
        ("a missing final newline still ends a line", b"a\nb", [b"a", b"b"]),
        ("blank lines are lines", b"\n\na\n", [b"", b"", b"a"]),
        ("carriage returns stay: they are white space to JSON", b"a\r\nb\r\n", [b"a\r", b"b\r"]),
        ("no other character ends a line", "a\u2028b\x0bc\x85d\n".encode(),
         ["a\u2028b\x0bc\x85d".encode()]),
        ("NULs are bytes like others", b"\0\n\0", [b"\0", b"\0"]),
        ("a BOM belongs to no line", BOM + b"a\n", [b"a"]),
        ("a BOM alone is nothing", BOM, []),
        ("half a BOM is no BOM", BOM[:2] + b"\n", [BOM[:2]]),
        ("a second BOM is content", BOM + BOM + b"\n", [BOM]),
    ],
)  # fmt: skip
def test_lines_end_at_newlines_alone(
    reason: str, data: bytes, want: list[bytes], chunk: int
) -> None:
    assert lines_of(data, chunk) == want, reason


@given(
    st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"")), max_size=30),
    st.booleans(),
    st.integers(1, 40),
    st.integers(1, 15),
)
def test_any_chunking_gives_the_same_lines_and_true_offsets(
    lines: list[bytes], final: bool, chunk: int, most: int
) -> None:
    data = b"\n".join(lines) + (b"\n" if final and lines else b"")
    if data.startswith(BOM):
        return
    expected = data.split(b"\n")
    if not expected[-1]:
        expected.pop()
    found = list(blocks(pieces(data, chunk), most))
    at = 0
    number = 0
    for block in found:
        for index, line in enumerate(block.lines):
            start = offset_of(block, index)
            assert start == at
            want = expected[number]
            if len(want) > most:
                assert line == Oversized(len(want))
            else:
                assert line == want
                assert data[start : start + len(want)] == want
            assert not block.is_ascii or want.isascii() or len(want) > most
            at += len(want) + 1
            number += 1
    assert number == len(expected)


@given(st.binary(max_size=200), st.integers(1, 40), st.data())
def test_reading_can_go_on_at_any_line(data: bytes, chunk: int, draw: st.DataObject) -> None:
    whole = [(offset_of(b, i), line) for b in blocks([data], 50) for i, line in enumerate(b.lines)]
    if not whole:
        return
    start, _ = draw.draw(st.sampled_from(whole))
    resumed = [
        (offset_of(b, i), line)
        for b in blocks(pieces(data[start:], chunk), 50, start)
        for i, line in enumerate(b.lines)
    ]
    if start:
        assert resumed == [item for item in whole if item[0] >= start]


@given(st.binary(max_size=300), st.integers(1, 40))
def test_our_own_files_are_split_the_same_way(data: bytes, chunk: int) -> None:
    expected = data.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert list(plain_lines(pieces(data, chunk))) == expected


def test_a_huge_line_is_skipped_without_being_held() -> None:
    def chunks():  # type: ignore[no-untyped-def]
        yield b"a\n"
        for _ in range(1000):
            yield b"x" * (1 << 16)
        yield b"y\nb\n"

    found = [line for block in blocks(chunks(), 1000) for line in block.lines]
    assert found == [b"a", Oversized(1000 * (1 << 16) + 1), b"b"]
