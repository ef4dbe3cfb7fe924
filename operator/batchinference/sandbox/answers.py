"""What the sandbox's models say: deterministic functions of the prompt.

Owns the answer text and its token counts (one word is one token). Must not know the wire
shapes of any provider.
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from zlib import crc32

from .spells import NONE, Spells

_LABELS = re.compile(
    r"\b(?:one of|as|into)\b:?\s+((?:[\w-]+(?:,\s*(?:or\s+)?|\s+or\s+|\s*[/|]\s*))+[\w-]+)",
    re.IGNORECASE,
)
_SPLIT = re.compile(r",\s*(?:or\s+)?|\s+or\s+|\s*[/|]\s*", re.IGNORECASE)
_SUMMARY_WORDS = 24
_LABEL_WINDOW = 2000  # characters of a prompt that are searched for a list of labels


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request to a chat model, whatever dialect it came in."""

    user: str
    system: str = ""
    input_tokens: int = 0
    max_tokens: int | None = None
    schema: dict[str, Any] | None = None  # the answer must be JSON of this schema
    tool: tuple[str, dict[str, Any]] | None = None  # the model is told to call it


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says; `finish` is stop, length, content_filter or tool_calls."""

    text: str
    finish: str
    input_tokens: int
    output_tokens: int
    tool: tuple[str, str] | None = None  # name, arguments as JSON text


def count_tokens(text: str) -> int:
    """Count a text's tokens: its words."""
    return len(text.split())


def reply(prompt: Prompt, spells: Spells = NONE) -> Answer:
    """Answer a prompt; the same prompt always gets the same answer."""
    if "empty" in spells:
        return Answer("", "stop", prompt.input_tokens, 0)
    if "filter" in spells:
        return Answer("", "content_filter", prompt.input_tokens, 0)
    if prompt.tool is not None:
        name, schema = prompt.tool
        arguments = json.dumps(instance_of(schema, prompt.user))
        tokens = count_tokens(arguments)
        return Answer("", "tool_calls", prompt.input_tokens, tokens, (name, arguments))
    if prompt.schema is not None:
        text = json.dumps(instance_of(prompt.schema, prompt.user))
    else:
        text = compose(prompt.system, prompt.user)
    words = text.split()
    if spells.answer_words is not None:
        words = (words or ["word"]) * (spells.answer_words // max(1, len(words)) + 1)
        words = words[: spells.answer_words]
        text = " ".join(words)
    limit = prompt.max_tokens
    if "length" in spells:
        limit = max(1, len(words) // 2)
    if limit is not None and ("length" in spells or len(words) > limit):
        cut = words[:limit]
        return Answer(" ".join(cut), "length", prompt.input_tokens, len(cut))
    return Answer(text, "stop", prompt.input_tokens, len(words))


def compose(system: str, user: str) -> str:
    """Pick a label when the prompt lists labels, else sum the user's text up."""
    labels = labels_in(system[:_LABEL_WINDOW])
    if labels:
        lowered = user.lower()
        for label in labels:
            if label.lower() in lowered:
                return label
        return labels[crc32(user.encode()) % len(labels)]
    labels = labels_in(user[:_LABEL_WINDOW])
    if labels:
        return labels[crc32(user.encode()) % len(labels)]
    return "Summary: " + " ".join(user.split(maxsplit=_SUMMARY_WORDS)[:_SUMMARY_WORDS])


@lru_cache(maxsize=256)
def labels_in(text: str) -> tuple[str, ...]:
    """Find a list of choices such as "one of: billing, technical, other"."""
    match = _LABELS.search(text)
    return tuple(_SPLIT.split(match[1])) if match else ()


def instance_of(schema: dict[str, Any], text: str, name: str = "") -> Any:
    """Build a JSON value that satisfies a plain JSON schema, filled from the prompt."""
    if "const" in schema:
        return schema["const"]
    if choices := schema.get("enum"):
        lowered = text.lower()
        for choice in choices:
            if isinstance(choice, str) and choice.lower() in lowered:
                return choice
        return choices[crc32((name + text).encode()) % len(choices)]
    for alternatives in ("anyOf", "oneOf"):
        if options := schema.get(alternatives):
            return instance_of(options[0], text, name)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        properties: dict[str, Any] = schema.get("properties", {"answer": {"type": "string"}})
        return {key: instance_of(value, text, key) for key, value in properties.items()}
    if kind == "array":
        size = max(1, int(schema.get("minItems", 1)))
        return [instance_of(schema.get("items", {}), text, name)] * size
    if kind in {"integer", "number"}:
        low = int(schema.get("minimum", 0))
        high = int(schema.get("maximum", low + 9))
        return low + crc32((name + text).encode()) % (high - low + 1)
    if kind == "boolean":
        return bool(crc32((name + text).encode()) & 1)
    if kind == "null":
        return None
    return " ".join(text.split(maxsplit=_SUMMARY_WORDS)[:_SUMMARY_WORDS])
