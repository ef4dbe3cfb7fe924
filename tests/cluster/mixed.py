"""A dataset of every kind of chat request, and what of a result line may differ between providers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "YPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
SCHEMA = {
    "type": "object",
    "properties": {"label": {"type": "string"}, "score": {"type": "integer"}},
    "required": ["label", "score"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def _user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _turns(n: int) -> dict[str, Any]:
    said = [_user(f"First {n}"), {"role": "assistant", "content": "Yes?"}, _user(f"Then {n}")]
    return {"messages": said}


def _image(n: int) -> dict[str, Any]:
    parts = [
        {"type": "text", "text": f"What is on picture {n}?"},
        {"type": "image_url", "image_url": {"url": PNG}},
    ]
    return {"messages": [_user(parts)], "max_tokens": 32}


def _schema(n: int) -> dict[str, Any]:
    wanted = {"name": "verdict", "schema": SCHEMA, "strict": True}
    return {
        "messages": [_user(f"Judge ticket {n}")],
        "response_format": {"type": "json_schema", "json_schema": wanted},
    }


def _tool(n: int) -> dict[str, Any]:
    forced = {"type": "function", "function": {"name": "get_weather"}}
    return {"messages": [_user(f"Weather {n}?")], "tools": [WEATHER], "tool_choice": forced}


PLAIN: list[Callable[[int], dict[str, Any]]] = [
    lambda n: {"messages": [_user(f"Say {n}")]},
    lambda n: {"messages": [{"role": "system", "content": "Be brief."}, _user(f"Ticket {n}")]},
    lambda n: {"messages": [{"role": "developer", "content": "One of: yes, no"}, _user(f"{n}")]},
    _turns,
    _image,
    _schema,
    lambda n: {"messages": [_user(f"Zahl {n} \u2028 Größe 請求")], "temperature": 0, "top_p": 0.5},
    lambda n: {"messages": [_user(f"Stop at {n}")], "stop": ["END"], "max_completion_tokens": 3},
    lambda n: {"messages": [_user(f"Long {n} " + "and so on " * 90)], "seed": n, "user": f"u{n}"},
]
WITH_TOOLS = [*PLAIN, _tool]


def records(
    count: int, kinds: list[Callable[[int], dict[str, Any]]]
) -> Iterator[dict[str, Any] | bytes]:
    """So many input lines, of which one in five hundred is bad, in a way that every provider's is."""
    for n in range(count):
        if n % 500 == 250:
            yield b'{"custom_id": "broken'
        elif n % 500 == 350:
            yield {"custom_id": f"empty-{n}", "body": {}}
        else:
            yield {"custom_id": f"id-{n}", "body": kinds[n % len(kinds)](n)}


def comparable(line: dict[str, Any]) -> dict[str, Any]:
    """A result line without what is the run's or the model's own: ids, texts, names, counts."""
    response = line["response"]
    if response is not None:
        body = response["body"]
        (choice,) = body["choices"]
        message = choice["message"]
        calls = message.get("tool_calls") or []
        response = {
            "status_code": response["status_code"],
            "object": body["object"],
            "role": message["role"],
            "has_text": isinstance(message["content"], str),
            "refusal": message["refusal"],
            "tools": [(c["type"], c["function"]["name"]) for c in calls],
            "finish_reason": choice["finish_reason"],
            "index": choice["index"],
            "logprobs": choice["logprobs"],
            "usage": sorted(
                {"prompt_tokens", "completion_tokens", "total_tokens"} & set(body["usage"])
            ),
            "members": sorted(body.keys() - {"system_fingerprint", "service_tier"}),
        }
    return {**line, "id": line["id"].rpartition("_")[2], "response": response}
