"""The endpoints of OpenAI that take requests, live or in a batch: check, answer, render.

Owns the bodies of requests and responses. Must not know files, batches, HTTP or the clock.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from zlib import crc32

from .answers import Answer, Prompt, count_tokens, reply
from .refusals import Refusal, of_status
from .spells import Spells
from .vectors import as_base64, embed

_PLAIN_CHAT_KEYS = frozenset(
    {"model", "messages", "temperature", "max_tokens", "max_completion_tokens"}
)
_PLAIN_MESSAGE_KEYS = frozenset({"role", "content"})
_PLAIN_ROLES = frozenset({"system", "developer", "user", "assistant"})
_PLAIN_EMBEDDING_KEYS = frozenset({"model", "input", "encoding_format"})
_MAX_EMBEDDING_INPUTS = 2048
_DEFAULT_DIMENSIONS = {"text-embedding-3-large": 3072}
_MATRYOSHKA = "text-embedding-3"  # models whose vectors may be shortened


@dataclass(frozen=True, slots=True)
class Served:
    """A response body and what it used."""

    body: dict[str, Any]
    input_tokens: int
    output_tokens: int


def is_known_model(model: str) -> bool:
    """Tell whether the sandbox plays this model; names with `no-such-model` do not exist."""
    return bool(model) and "no-such-model" not in model


def serve(endpoint: str, body: dict[str, Any], tag: str, moment: int, spells: Spells) -> Served:
    """Answer one request.

    `tag` makes the response's id, `moment` is its creation time in Unix seconds.

    Raises:
        Refusal: the request is wrong, or a magic word asks for an error.
    """
    if spells.error_status is not None:
        raise of_status(spells.error_status)
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise Refusal(400, "you must provide a model parameter", None, "model")
    if not is_known_model(model):
        raise Refusal(
            404,
            f"The model `{model}` does not exist or you do not have access to it.",
            "model_not_found",
            "model",
        )
    return ENDPOINTS[endpoint](body, tag, moment, spells)


def input_tokens(endpoint: str, body: dict[str, Any]) -> int:
    """Count the prompt tokens of a request that may still be wrong; wrong parts count nothing."""
    if endpoint == "/v1/chat/completions":
        messages = body.get("messages")
        if not isinstance(messages, list):
            return 0
        return sum(
            count_tokens(text_of(message.get("content")))
            for message in messages
            if isinstance(message, dict)
        )
    prompt = body.get("prompt" if endpoint == "/v1/completions" else "input")
    if isinstance(prompt, list):
        return sum(
            len(part) if isinstance(part, list) else count_tokens(text_of([part]))
            for part in prompt
        )
    return count_tokens(prompt) if isinstance(prompt, str) else 0


def text_of(content: Any) -> str:
    """Join the text of a message's content, whether it is a string or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [
            part if isinstance(part, str) else text_of(part.get("text", part.get("content")))
            for part in content
            if isinstance(part, str | dict)
        ]
        return "\n".join(texts)
    return ""


def chat_prompt(body: dict[str, Any]) -> Prompt:
    """Check a chat body and read the prompt out of it; also used for models on Bedrock.

    Raises:
        Refusal: in OpenAI's words.
    """
    _refuse_stream(body)
    if not _is_plain_chat(body):
        _check_types("/v1/chat/completions", body)
    system, user, tokens = "", "", 0
    for message in body["messages"]:
        text = text_of(message.get("content"))
        tokens += count_tokens(text)
        if message["role"] == "user":
            user = text
        elif message["role"] in {"system", "developer"}:
            system += text
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    return Prompt(user, system, tokens, limit, _schema_of(body), _tool_of(body))


def chat_body(answers: list[Answer], model: str, tag: str, moment: int) -> dict[str, Any]:
    """Render a chat.completion object with one choice per answer."""
    first = answers[0]
    output = sum(answer.output_tokens for answer in answers)
    return {
        "id": f"chatcmpl-{tag}",
        "object": "chat.completion",
        "created": moment,
        "model": model,
        "choices": [_choice(index, answer, tag) for index, answer in enumerate(answers)],
        "usage": {
            "prompt_tokens": first.input_tokens,
            "completion_tokens": output,
            "total_tokens": first.input_tokens + output,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        },
        "service_tier": "default",
        "system_fingerprint": None,
    }


def _choice(index: int, answer: Answer, tag: str) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": answer.text,
        "refusal": None,
        "annotations": [],
    }
    if answer.tool is not None:
        name, arguments = answer.tool
        message["content"] = None
        message["tool_calls"] = [
            {
                "id": f"call_{tag}{index}",
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
        ]
    return {"index": index, "message": message, "logprobs": None, "finish_reason": answer.finish}


def _chat(body: dict[str, Any], tag: str, moment: int, spells: Spells) -> Served:
    prompt = chat_prompt(body)
    answer = reply(prompt, spells)
    answers = [answer] * int(body.get("n") or 1)
    rendered = chat_body(answers, body["model"], tag, moment)
    return Served(rendered, prompt.input_tokens, rendered["usage"]["completion_tokens"])


def _completions(body: dict[str, Any], tag: str, moment: int, spells: Spells) -> Served:
    _refuse_stream(body)
    _check_types("/v1/completions", body)
    prompts = body.get("prompt", "")
    texts = prompts if isinstance(prompts, list) else [prompts]
    limit = int(body.get("max_tokens") or 16)
    answers = [
        reply(Prompt(text_of([text]), "", count_tokens(text_of([text])), limit), spells)
        for text in texts
    ]
    used = sum(answer.input_tokens for answer in answers)
    output = sum(answer.output_tokens for answer in answers)
    rendered = {
        "id": f"cmpl-{tag}",
        "object": "text_completion",
        "created": moment,
        "model": body["model"],
        "choices": [
            {
                "index": index,
                "text": answer.text,
                "logprobs": None,
                "finish_reason": answer.finish,
            }
            for index, answer in enumerate(answers)
        ],
        "usage": {
            "prompt_tokens": used,
            "completion_tokens": output,
            "total_tokens": used + output,
        },
    }
    return Served(rendered, used, output)


def _responses(body: dict[str, Any], tag: str, moment: int, spells: Spells) -> Served:
    _refuse_stream(body)
    _check_types("/v1/responses", body)
    given = body.get("input", "")
    system, user = str(body.get("instructions") or ""), ""
    for item in given if isinstance(given, list) else [{"role": "user", "content": given}]:
        text = text_of(item.get("content"))
        if item.get("role") in {"system", "developer"}:
            system += text
        elif item.get("role") == "user":
            user = text
    used = count_tokens(system) + count_tokens(user)
    answer = reply(Prompt(user, system, used, body.get("max_output_tokens")), spells)
    cut = answer.finish == "length"
    rendered: dict[str, Any] = {
        "id": f"resp_{tag}",
        "object": "response",
        "created_at": moment,
        "status": "incomplete" if cut else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": body.get("instructions"),
        "metadata": body.get("metadata") or {},
        "model": body["model"],
        # The answer is not the first item, as with reasoning models: readers must look for it.
        "output": [
            {"id": f"rs_{tag}", "type": "reasoning", "summary": []},
            {
                "id": f"msg_{tag}",
                "type": "message",
                "role": "assistant",
                "status": "incomplete" if cut else "completed",
                "content": [{"type": "output_text", "text": answer.text, "annotations": []}],
            },
        ],
        "parallel_tool_calls": True,
        "temperature": body.get("temperature", 1.0),
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools", []),
        "top_p": body.get("top_p", 1.0),
        "usage": {
            "input_tokens": used,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": answer.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": used + answer.output_tokens,
        },
    }
    return Served(rendered, used, answer.output_tokens)


def _embeddings(body: dict[str, Any], tag: str, moment: int, spells: Spells) -> Served:
    del tag, moment, spells  # an embedding has no id, no date and no wording
    if not (body.keys() <= _PLAIN_EMBEDDING_KEYS and isinstance(body.get("input"), str)):
        _check_types("/v1/embeddings", body)
    model: str = body["model"]
    given = body["input"]
    inputs = given if isinstance(given, list) else [given]
    if inputs and all(isinstance(part, int) for part in inputs):
        inputs = [inputs]  # one text, as token numbers
    if not inputs or len(inputs) > _MAX_EMBEDDING_INPUTS or "" in inputs:
        raise Refusal(400, "'$.input' is invalid. Please check the API reference.", None, "input")
    dimensions = body.get("dimensions")
    if dimensions is not None and not model.startswith(_MATRYOSHKA):
        raise Refusal(400, "This model does not support specifying dimensions.", None, "dimensions")
    encoding = body.get("encoding_format", "float")
    data: list[dict[str, Any]] = []
    used = 0
    for index, part in enumerate(inputs):
        text = part if isinstance(part, str) else " ".join(map(str, part))
        used += count_tokens(text)
        vector = embed(text, dimensions or _DEFAULT_DIMENSIONS.get(model, 1536))
        value = as_base64(vector) if encoding == "base64" else vector
        data.append({"object": "embedding", "index": index, "embedding": value})
    rendered = {
        "object": "list",
        "data": data,
        "model": model,
        "usage": {"prompt_tokens": used, "total_tokens": used},
    }
    return Served(rendered, used, 0)


def _moderations(body: dict[str, Any], tag: str, moment: int, spells: Spells) -> Served:
    del moment, spells
    _check_types("/v1/moderations", body)
    given = body["input"]
    texts = given if isinstance(given, list) else [given]
    results = []
    for text in texts:
        score = crc32(text_of([text]).encode()) % 1000 / 1000
        flagged = score > 0.95
        results.append(
            {
                "flagged": flagged,
                "categories": {"harassment": flagged},
                "category_scores": {"harassment": score},
            }
        )
    rendered = {"id": f"modr-{tag}", "model": body["model"], "results": results}
    return Served(rendered, input_tokens("/v1/moderations", body), 0)


ENDPOINTS: dict[str, Callable[[dict[str, Any], str, int, Spells], Served]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completions,
    "/v1/embeddings": _embeddings,
    "/v1/moderations": _moderations,
    "/v1/responses": _responses,
}


def _is_plain_chat(body: dict[str, Any]) -> bool:
    """Pass what is right beyond doubt; anything else is held against the SDK's types."""
    messages = body.get("messages")
    if not (body.keys() <= _PLAIN_CHAT_KEYS and isinstance(messages, list) and messages):
        return False
    for message in messages:
        if not (
            isinstance(message, dict)
            and message.keys() == _PLAIN_MESSAGE_KEYS
            and message["role"] in _PLAIN_ROLES
            and isinstance(message["content"], str)
        ):
            return False
    temperature = body.get("temperature", 0)
    if not (isinstance(temperature, int | float) and 0 <= temperature <= 2):
        return False
    for key in ("max_tokens", "max_completion_tokens"):
        limit = body.get(key, 1)
        if not (isinstance(limit, int) and not isinstance(limit, bool) and limit >= 1):
            return False
    return True


def _check_types(endpoint: str, body: dict[str, Any]) -> None:
    from .openai_types import check  # noqa: PLC0415  # a second to load, plain requests pass by

    check(endpoint, body)


def _refuse_stream(body: dict[str, Any]) -> None:
    if body.get("stream"):
        raise Refusal(400, "Streaming is not supported here.", "streaming_unsupported", "stream")


def _schema_of(body: dict[str, Any]) -> dict[str, Any] | None:
    chosen = body.get("response_format")
    if not chosen or chosen.get("type") == "text":
        return None
    if chosen["type"] == "json_object":
        return {"type": "object"}
    schema: dict[str, Any] = chosen["json_schema"].get("schema") or {"type": "object"}
    return schema


def _tool_of(body: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    choice = body.get("tool_choice")
    tools = [tool["function"] for tool in body.get("tools") or () if tool.get("function")]
    if not tools or not (choice == "required" or isinstance(choice, dict)):
        return None  # left to choose, the sandbox's models answer in words
    wanted = choice["function"]["name"] if isinstance(choice, dict) else tools[0]["name"]
    for tool in tools:
        if tool["name"] == wanted:
            return wanted, tool.get("parameters") or {"type": "object"}
    raise Refusal(
        400, f"Tool choice '{wanted}' not found in 'tools' parameter.", None, "tool_choice"
    )


@lru_cache(maxsize=64)
def parse_schema(text: str) -> dict[str, Any]:
    """Parse a JSON schema given as text.

    Raises:
        ValueError: when it is not a JSON object.
    """
    schema = json.loads(text)
    if not isinstance(schema, dict):
        raise ValueError("a schema is a JSON object")  # noqa: TRY004  # a bad value, not a bug
    return schema
