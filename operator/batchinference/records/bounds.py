"""The most tokens that the answer to a request may have, as the request itself says.

Owns which members say it, for each operation and for Bedrock's own formats. 0 stands for a request
that says nothing of it, or something that nobody can count on. What a request has its provider
make besides an answer (images, searches) is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Any, Literal

import msgspec

from batchinference.model.job import Operation
from batchinference.records.parameters import Default

MOST = 0xFFFFFFFF
"""What is more than this is no bound."""

Limit = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)] | None
"""How the members are usually written."""

_NULL = b"null"


@dataclass(frozen=True, slots=True)
class Members:
    """What bounds the answers of an operation.

    Attributes:
        limits: each limits one answer; the first that is there counts.
        counts: how many answers are made.
        lists: where it is a list, each entry has an answer.
    """

    limits: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()
    lists: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.limits, *self.counts, *filter(None, (self.lists,)))


MEMBERS: Mapping[Operation, Members] = {
    Operation.CHAT_COMPLETIONS: Members(("max_completion_tokens", "max_tokens"), ("n",)),
    Operation.COMPLETIONS: Members(("max_tokens",), ("n", "best_of"), "prompt"),
    Operation.RESPONSES: Members(("max_output_tokens",)),
    Operation.EMBEDDINGS: Members(),
}


def bound(members: Members, said: Mapping[str, bytes], defaults: Sequence[Default]) -> int:
    """The most tokens of the answers to one request.

    Args:
        members: of its operation.
        said: those of `members.names` that the request has, as JSON text.
        defaults: what it gets where it has none of their names.
    """
    whole = dict(said)
    for default in defaults:
        if default.names[0] in members.names and not any(name in said for name in default.names):
            whole[default.names[0]] = msgspec.json.encode(default.value)
    limit = next((_number(whole[name]) for name in members.limits if _is_said(whole, name)), 0)
    counts = [_number(whole[name]) for name in members.counts if _is_said(whole, name)]
    if counts:
        limit *= max(counts) if all(counts) else 0
    if members.lists in whole:
        limit *= _entries(whole[members.lists])
    return limit if limit <= MOST else 0


def _is_said(whole: Mapping[str, bytes], name: str) -> bool:
    return whole.get(name, _NULL) != _NULL


def _number(text: bytes) -> int:
    """A count of at least one, 0 for anything else."""
    try:
        number: int = _number_of(text)
    except msgspec.ValidationError:
        return 0
    return number


_number_of = msgspec.json.Decoder(Annotated[int, msgspec.Meta(ge=1, le=MOST)]).decode


def _entries(text: bytes) -> int:
    """How many prompts there are: a list of numbers is one, in tokens."""
    if text[:1] != b"[":
        return 1
    entries = msgspec.json.decode(text, type=list[msgspec.Raw])
    is_one = bool(entries) and bytes(entries[0])[:1] not in {b'"', b"["}
    return 1 if is_one else len(entries)


# ---------------------------------------------------------------- many at once


def usual_type(members: Members, name: str) -> Any:
    """How a member that bounds the answer is usually written; anything else needs a closer look."""
    if name in members.limits:
        return Limit
    return Literal[1] | None if name in members.counts else str | None


def usual(
    members: Members, defaults: Sequence[Default], attributes: Mapping[str, str]
) -> Callable[[list[Any]], Sequence[int]]:
    """The bounds of usual requests, from what was read of each of them.

    Args:
        members: of their operation.
        defaults: what they get; a usual request has none of their names itself.
        attributes: where of a request what a member says is found, as `usual_type` has it.
    """
    own = {name for default in defaults for name in default.names}
    if own.issuperset(members.limits):
        same = bound(members, {}, defaults)
        return lambda read: [same] * len(read)
    times = bound(members, {members.limits[0]: b"1"}, defaults)
    first = attrgetter(attributes[members.limits[0]])
    last = attrgetter(attributes[members.limits[-1]])

    def outputs(read: list[Any]) -> Sequence[int]:
        limits = [first(one) or last(one) or 0 for one in read]
        if times == 1 and min(limits) >= 0 and max(limits) <= MOST:
            return limits
        whole = [limit * times for limit in limits]
        return [limit if 0 < limit <= MOST else 0 for limit in whole]

    return outputs


# ---------------------------------------------------------------- Bedrock's own formats


class _Config(msgspec.Struct, rename="camel"):
    max_tokens: Any = None  # Converse, Nova
    max_new_tokens: Any = msgspec.field(default=None, name="max_new_tokens")  # Nova
    max_token_count: Any = None  # Titan


class _Native(msgspec.Struct):
    max_tokens: Any = None  # Anthropic, Mistral, Cohere, OpenAI's open models
    max_completion_tokens: Any = None  # OpenAI's open models
    max_gen_len: Any = None  # Llama
    max_new_tokens: Any = None
    inference_config: _Config | None = msgspec.field(default=None, name="inferenceConfig")
    text_config: _Config | None = msgspec.field(default=None, name="textGenerationConfig")
    n: Any = None
    num_generations: Any = None  # Cohere


_native = msgspec.json.Decoder(_Native).decode


def native_bound(model_input: bytes) -> int:
    """The same for a request in the format of a model on Bedrock: the largest number in any of the
    places where one of them has it.
    """
    try:
        found = _native(model_input)
    except (msgspec.ValidationError, RecursionError):
        return 0
    configs = [config for config in (found.inference_config, found.text_config) if config]
    inner = [
        value for c in configs for value in (c.max_tokens, c.max_new_tokens, c.max_token_count)
    ]
    outer = [found.max_tokens, found.max_completion_tokens, found.max_gen_len, found.max_new_tokens]
    limits = [value for value in (*outer, *inner) if value is not None]
    counts = [value for value in (found.n, found.num_generations) if value is not None]
    if not limits or not all(map(_is_count, (*limits, *counts))):
        return 0
    limit = max(limits)
    for count in counts:
        limit *= count
    return limit if limit <= MOST else 0


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST
