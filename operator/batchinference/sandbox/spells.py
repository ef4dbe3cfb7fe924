"""Magic words in prompts: what a record asks the sandbox to do to it.

Owns the vocabulary and its reading. Must not know providers or files.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import blake2b

MARK = b"SANDBOX:"
_WORD = re.compile(rb"SANDBOX:([a-z]+(?:-[a-z0-9]+)*)")

VOCABULARY = {
    "error-NNN": "the record fails with that HTTP status",
    "expire": "the record is not reached and its batch ends expired (Bedrock: PartiallyCompleted)",
    "missing": "the record gets no line in any file, though the batch completes",
    "broken-json": "the record's line in the output file is not JSON",
    "broken-utf8": "the record's line in the output file is not UTF-8",
    "status-0": "an error line with status_code 0, an empty request_id and an empty body",
    "duplicate": "the record's line stands twice in the output file",
    "stranger": "an extra line with an id that was never sent",
    "length": "the answer stops in the middle, finish reason length",
    "empty": "the answer has no text",
    "filter": "the answer is withheld, finish reason content_filter",
    "long-N": "the answer has N words",
    "slow": "a live call takes a second longer",
}
_PLAIN = frozenset(word for word in VOCABULARY if not word.endswith("-N"))
_ERROR = re.compile(r"error-([1-5]\d\d)")
_LONG = re.compile(r"long-(\d{1,6})")
_ONCE = "-once"


@dataclass(frozen=True, slots=True)
class Spells:
    """What one record asks for."""

    words: frozenset[str] = frozenset()
    error_status: int | None = None
    answer_words: int | None = None

    def __contains__(self, word: str) -> bool:
        return word in self.words


NONE = Spells()


def read(raw: bytes, used: Collection[str] = (), spend: set[str] | None = None) -> Spells:
    """Find the magic words in the raw bytes of a record.

    A word that ends in `-once` acts only while its mark (word and prompt together) is not in
    `used`; the marks that acted are added to `spend`.
    """
    if MARK not in raw:
        return NONE
    words: set[str] = set()
    error_status: int | None = None
    answer_words: int | None = None
    for found in _WORD.findall(raw):
        word = found.decode("ascii")
        if word.endswith(_ONCE):
            mark = _mark_of(word, raw)
            if mark in used:
                continue
            if spend is not None:
                spend.add(mark)
            word = word.removesuffix(_ONCE)
        if match := _ERROR.fullmatch(word):
            error_status = int(match[1])
        elif match := _LONG.fullmatch(word):
            answer_words = int(match[1])
        elif word in _PLAIN:
            words.add(word)
    return Spells(frozenset(words), error_status, answer_words)


def _mark_of(word: str, raw: bytes) -> str:
    """Identify a prompt across submissions: ids change from one to the next, bodies do not."""
    start = raw.find(b'"body"')
    if start < 0:
        start = raw.find(b'"modelInput"')
    body = raw[max(start, 0) :]
    # A reply can echo the id after the body; what surrounds the word itself is stable.
    at = body.find(word.encode("ascii"))
    around = body[max(0, at - 200) : at + 200]
    return f"{word}:{blake2b(around, digest_size=8).hexdigest()}"
