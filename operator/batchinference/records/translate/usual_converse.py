"""The usual chat request as a Converse body: quicker than `converse`, and the same bytes.

Usual: messages of text alone, and of the options those that stand in `inferenceConfig`. Everything
else, blank texts too, is left to `converse`. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from batchinference.records.refusal import UnsupportedRequest
from batchinference.records.translate.converse import inference_config

_MOST_CONFIGS = 1_000

_encode = msgspec.json.Encoder().encode


class Message(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A message with a role and a text and nothing else."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str


class Body(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A body of which nothing but these members is asked; `records.request` adds the model."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    temperature: int | float | None = None
    top_p: int | float | None = None
    stop: str | list[str] | None = None


class _Text(msgspec.Struct, gc=False):
    text: str


class _Turn(msgspec.Struct, gc=False):
    role: str
    content: list[_Text]


class ModelInput(msgspec.Struct, gc=False, omit_defaults=True, rename="camel"):
    """A Converse request."""

    messages: list[_Turn]
    system: list[_Text] | None = None
    inference_config: msgspec.Raw | None = None


class UsualConverse:
    """Translates bodies of one run."""

    def __init__(self, defaults: Mapping[str, Any]) -> None:
        """`defaults`: members that every body gets, of which it has none itself."""
        self._defaults = defaults
        self._configs: dict[Any, msgspec.Raw | None] = {}

    def translate(self, body: Body) -> ModelInput | None:
        """The Converse request; None for what `converse` is to decide."""
        try:
            config = self._config(body)
        except UnsupportedRequest:
            return None
        system: list[_Text] = []
        turns: list[_Turn] = []
        last = ""
        for message in body.messages:
            text, role = message.content, message.role
            if not text or text.isspace():
                return None
            if role == last:
                turns[-1].content.append(_Text(text))
            elif role in {"user", "assistant"}:
                turns.append(_Turn(role, [_Text(text)]))
                last = role
            else:
                system.append(_Text(text))
        if not turns or turns[0].role != "user":
            return None
        return ModelInput(turns, system or None, config)

    def _config(self, body: Body) -> msgspec.Raw | None:
        """The `inferenceConfig`, which is the same for most bodies."""
        stop = body.stop
        temperature, top_p = body.temperature, body.top_p
        key = (
            body.max_completion_tokens,
            body.max_tokens,
            temperature,
            type(temperature),  # 1 and 1.0 are written differently
            top_p,
            type(top_p),
            tuple(stop) if isinstance(stop, list) else stop,
        )
        if key not in self._configs:
            if len(self._configs) >= _MOST_CONFIGS:
                self._configs.clear()
            own = {name: getattr(body, name) for name in _OPTIONS}
            given = {name: value for name, value in own.items() if value is not None}
            config = inference_config({**self._defaults, **given})
            self._configs[key] = msgspec.Raw(_encode(config)) if config else None
        return self._configs[key]


_OPTIONS = ("max_completion_tokens", "max_tokens", "temperature", "top_p", "stop")
