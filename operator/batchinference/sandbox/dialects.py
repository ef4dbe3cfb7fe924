"""The request bodies of the model families on Bedrock: check, answer, render.

One dialect per family for InvokeModel, and Converse for any chat model. A body in another
family's dialect is refused in words like the real ones. Must not know files, jobs or HTTP.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import converse, openai_endpoints
from .answers import Answer, Prompt, count_tokens, reply
from .openai_endpoints import Served, text_of
from .refusals import Refusal, of_status
from .spells import Spells
from .vectors import embed

_PROFILE = re.compile(r"^(?:us|us-gov|eu|apac|jp|au|ca|global)\.")
# Batch-capable only through an inference profile.
_PROFILE_ONLY = re.compile(
    r"^(?:anthropic\.claude-(?:sonnet|opus|haiku)-\d|anthropic\.claude-3-7"
    r"|amazon\.nova-premier|amazon\.nova-2)"
)
_NOT_BATCHABLE = re.compile(
    r"^(?:cohere\.|ai21\.|amazon\.titan-(?:text|tg1)|deepseek\.r1|stability\.)"
)
_KNOWN = re.compile(r"^(?:anthropic|amazon|meta|mistral|openai|qwen|deepseek|google|nvidia)\.")
_STOP = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}
_CONVERSE_STOP = {**_STOP, "content_filter": "content_filtered"}


def family_id(model_id: str) -> str:
    """Reduce an id, profile id or ARN to the foundation model's own id."""
    return _PROFILE.sub("", model_id.rsplit("/", 1)[-1])


def model_problem(model_id: str) -> str | None:
    """Say why a job with this model is refused at creation; None when it is accepted."""
    if "no-such-model" in model_id:
        return "The provided model identifier is invalid."
    if "application-inference-profile" in model_id or "custom-model/" in model_id:
        return None
    bare = family_id(model_id)
    if _NOT_BATCHABLE.match(bare):
        return f"The model {model_id} does not support batch inference."
    if not _KNOWN.match(bare):
        return "The provided model identifier is invalid."
    if _PROFILE_ONLY.match(bare) and bare == model_id.rsplit("/", 1)[-1]:
        return (
            f"Invocation of model ID {model_id} with on-demand throughput isn't supported. Retry "
            "your request with the ID or ARN of an inference profile that contains this model."
        )
    return None


@dataclass(frozen=True, slots=True)
class Request:
    """One record's body and the circumstances of its answer."""

    body: dict[str, Any]
    model: str
    tag: str
    moment: int
    spells: Spells


def serve(request: Request, invocation_type: str) -> Served:
    """Answer a record.

    Raises:
        Refusal: the body is not of the model's dialect, or a magic word asks for an error.
    """
    if request.spells.error_status is not None:
        refusal = of_status(request.spells.error_status)
        if refusal.status == 429:
            refusal.message = "Too many requests, please wait before trying again."
        raise refusal
    if invocation_type == "Converse":
        return _converse(request)
    return _dialect(family_id(request.model))(request)


def _dialect(model: str) -> Callable[[Request], Served]:
    for pattern, dialect in _DIALECTS:
        if pattern.match(model):
            return dialect
    return _claude


def _converse(request: Request) -> Served:
    if family_id(request.model).startswith("amazon.titan-embed"):
        raise Refusal(400, "This action doesn't support the model that you provided.")
    answer = reply(converse.prompt_of(request.body), request.spells)
    body = {
        "output": {"message": {"role": "assistant", "content": [{"text": answer.text}]}},
        "stopReason": _CONVERSE_STOP[answer.finish],
        "usage": {
            "inputTokens": answer.input_tokens,
            "outputTokens": answer.output_tokens,
            "totalTokens": answer.input_tokens + answer.output_tokens,
            "cacheReadInputTokens": 0,
            "cacheWriteInputTokens": 0,
        },
        "metrics": {"latencyMs": 400},
    }
    return _served(answer, body)


_CLAUDE_KEYS = frozenset({
    "anthropic_beta", "anthropic_version", "max_tokens", "messages", "metadata", "output_config",
    "stop_sequences", "system", "temperature", "thinking", "tool_choice", "tools", "top_k", "top_p",
})  # fmt: skip
_CLAUDE_BLOCKS = frozenset({"text", "image", "tool_use", "tool_result", "document", "thinking"})


def _claude(request: Request) -> Served:
    body = request.body
    for key in ("anthropic_version", "max_tokens", "messages"):
        if key not in body:
            raise Refusal(400, f"{key}: Field required")
    if body["anthropic_version"] != "bedrock-2023-05-31":
        raise Refusal(400, "anthropic_version: Input should be 'bedrock-2023-05-31'")
    for key in body:
        if key not in _CLAUDE_KEYS:
            raise Refusal(400, f"{key}: Extra inputs are not permitted")
    if not isinstance(body["max_tokens"], int) or body["max_tokens"] < 1:
        raise Refusal(400, "max_tokens: Input should be greater than or equal to 1")
    _range(body, "temperature", "temperature: range: 0..1")
    if "temperature" in body and "top_p" in body and _PROFILE_ONLY.match(family_id(request.model)):
        raise Refusal(
            400,
            "`temperature` and `top_p` cannot both be specified for this model. "
            "Please use only one.",
        )
    _claude_messages(body["messages"])
    for index, tool in enumerate(body.get("tools") or ()):
        if tool.get("type") == "function":
            raise Refusal(
                400,
                f"Malformed input request: #/tools/{index}: Input tag 'function' found using "
                "'type' does not match any of the expected tags: 'computer_20241022', 'custom'",
            )
        if "input_schema" not in tool:
            raise Refusal(400, f"tools.{index}.input_schema: Field required")
    prompt = _claude_prompt(body)
    answer = reply(prompt, request.spells)
    content: list[dict[str, Any]] = [{"type": "text", "text": answer.text}]
    stop = _STOP.get(answer.finish, "tool_use")
    if answer.tool is not None:
        name, arguments = answer.tool
        parsed = openai_endpoints.parse_schema(arguments)
        content = [
            {"type": "tool_use", "id": f"toolu_{request.tag}", "name": name, "input": parsed}
        ]
    rendered = {
        "id": f"msg_bdrk_{request.tag}",
        "type": "message",
        "role": "assistant",
        "model": family_id(request.model),
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {
            "input_tokens": answer.input_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": answer.output_tokens,
        },
    }
    return _served(answer, rendered)


def _claude_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise Refusal(400, "messages: at least one message is required")
    for index, message in enumerate(messages):
        if message.get("role") not in {"user", "assistant"}:
            raise Refusal(
                400,
                f'messages: Unexpected role "{message.get("role")}". The Messages API accepts '
                'a top-level `system` parameter, not "system" as an input message role.',
            )
        content = message.get("content")
        if isinstance(content, list):
            for place, block in enumerate(content):
                if block.get("type") not in _CLAUDE_BLOCKS:
                    raise Refusal(
                        400,
                        f"messages.{index}.content.{place}: Input tag '{block.get('type')}' found "
                        "using 'type' does not match any of the expected tags",
                    )
        elif not isinstance(content, str):
            raise Refusal(400, f"messages.{index}.content: Field required")
        if not content:
            raise Refusal(400, f"messages.{index}: all messages must have non-empty content")
    if messages[0]["role"] != "user":
        raise Refusal(400, 'messages: first message must use the "user" role')


def _claude_prompt(body: dict[str, Any]) -> Prompt:
    system = text_of(body.get("system"))
    user = _last_user(body["messages"])
    tokens = count_tokens(system) + _message_tokens(body["messages"])
    shape = (body.get("output_config") or {}).get("format") or {}
    tool = None
    choice = body.get("tool_choice") or {}
    if body.get("tools") and choice.get("type") in {"any", "tool"}:
        chosen = body["tools"][0]
        for candidate in body["tools"]:
            if candidate["name"] == choice.get("name"):
                chosen = candidate
        tool = (chosen["name"], chosen["input_schema"])
    return Prompt(user, system, tokens, body["max_tokens"], shape.get("schema"), tool)


_NOVA_KEYS = frozenset({"schemaVersion", "system", "messages", "inferenceConfig", "toolConfig"})


def _nova(request: Request) -> Served:
    body = request.body
    _no_extraneous(body, _NOVA_KEYS)
    _need(body, "messages")
    for index, message in enumerate(body["messages"]):
        content = message.get("content")
        if not isinstance(content, list):
            found = "String" if isinstance(content, str) else "Null"
            raise _malformed(
                f"#/messages/{index}/content: expected type: JSONArray, found: {found}"
            )
        if message.get("role") not in {"user", "assistant"}:
            raise _malformed(f"#/messages/{index}/role: {message.get('role')} is not a valid role")
    if isinstance(body.get("system"), str):
        raise _malformed("#/system: expected type: JSONArray, found: String")
    system = text_of(body.get("system"))
    settings = body.get("inferenceConfig") or {}
    tokens = count_tokens(system) + _message_tokens(body["messages"])
    limit = settings.get("maxTokens") or settings.get("max_new_tokens")
    answer = reply(Prompt(_last_user(body["messages"]), system, tokens, limit), request.spells)
    rendered = {
        "output": {"message": {"role": "assistant", "content": [{"text": answer.text}]}},
        "stopReason": _CONVERSE_STOP[answer.finish],
        "usage": {
            "inputTokens": answer.input_tokens,
            "outputTokens": answer.output_tokens,
            "totalTokens": answer.input_tokens + answer.output_tokens,
            "cacheReadInputTokenCount": 0,
            "cacheWriteInputTokenCount": 0,
        },
    }
    return _served(answer, rendered)


_LLAMA_KEYS = frozenset({"prompt", "max_gen_len", "temperature", "top_p", "images"})


def _llama(request: Request) -> Served:
    _no_extraneous(request.body, _LLAMA_KEYS)
    _need(request.body, "prompt")
    answer = _of_text(request, request.body["prompt"], request.body.get("max_gen_len") or 512)
    rendered = {
        "generation": answer.text,
        "prompt_token_count": answer.input_tokens,
        "generation_token_count": answer.output_tokens,
        "stop_reason": answer.finish,
    }
    return _served(answer, rendered)


_MISTRAL_KEYS = frozenset({"prompt", "max_tokens", "temperature", "top_p", "top_k", "stop"})


def _mistral_text(request: Request) -> Served:
    _no_extraneous(request.body, _MISTRAL_KEYS)
    _need(request.body, "prompt")
    answer = _of_text(request, request.body["prompt"], request.body.get("max_tokens") or 512)
    return _served(answer, {"outputs": [{"text": answer.text, "stop_reason": answer.finish}]})


def _mistral_chat(request: Request) -> Served:
    answer = reply(openai_endpoints.chat_prompt({"model": request.model, **request.body}),
                   request.spells)  # fmt: skip
    message = {"role": "assistant", "content": answer.text, "tool_calls": []}
    choice = {"index": 0, "message": message, "stop_reason": answer.finish}
    return _served(answer, {"choices": [choice]})


def _openai_shape(request: Request) -> Served:
    body = request.body
    own = family_id(request.model)
    if family_id(str(body.get("model", own))) != own:
        raise Refusal(400, f"model: '{body['model']}' does not match the job's model '{own}'")
    answer = reply(openai_endpoints.chat_prompt({**body, "model": own}), request.spells)
    rendered = openai_endpoints.chat_body([answer], own, request.tag, request.moment)
    if own.startswith("openai.gpt-oss") and answer.tool is None:
        message = rendered["choices"][0]["message"]
        message["content"] = f"<reasoning>Read the question.</reasoning>{answer.text}"
    return _served(answer, rendered)


_TITAN_SIZES = (256, 512, 1024)
_TITAN_KEYS = frozenset({"inputText", "dimensions", "normalize", "embeddingTypes"})


def _titan_v2(request: Request) -> Served:
    body = request.body
    _no_extraneous(body, _TITAN_KEYS)
    text = _titan_text(body)
    size = body.get("dimensions", 1024)
    if size not in _TITAN_SIZES:
        raise _malformed(f"#/dimensions: {size} is not a valid enum value")
    vector = embed(text, size)
    rendered: dict[str, Any] = {"embedding": vector, "inputTextTokenCount": count_tokens(text)}
    rendered["embeddingsByType"] = {"float": vector}
    return Served(rendered, rendered["inputTextTokenCount"], 0)


def _titan_image(request: Request) -> Served:
    body = request.body
    _no_extraneous(body, frozenset({"inputText", "inputImage", "embeddingConfig"}))
    text = _titan_text(body) if "inputText" in body else str(body.get("inputImage", ""))[:200]
    size = (body.get("embeddingConfig") or {}).get("outputEmbeddingLength", 1024)
    rendered = {"embedding": embed(text, size), "inputTextTokenCount": count_tokens(text)}
    return Served(rendered, count_tokens(text), 0)


def _titan_text(body: dict[str, Any]) -> str:
    _need(body, "inputText")
    text = body["inputText"]
    if not isinstance(text, str):
        raise _malformed("#/inputText: expected type: String, found: JSONArray")
    if not text or len(text) > 50_000:
        raise _malformed("#/inputText: expected minLength: 1, maxLength: 50000")
    if count_tokens(text) > 8192:
        raise Refusal(400, "400 Bad Request: Too many input tokens. Max input tokens: 8192")
    return text


_DIALECTS: tuple[tuple[re.Pattern[str], Callable[[Request], Served]], ...] = (
    (re.compile(r"anthropic\."), _claude),
    (re.compile(r"amazon\.titan-embed-image"), _titan_image),
    (re.compile(r"amazon\.titan-embed"), _titan_v2),
    (re.compile(r"amazon\.nova"), _nova),
    (re.compile(r"meta\."), _llama),
    (re.compile(r"mistral\.(?:mistral-7b|mixtral|mistral-(?:large|small)-2402)"), _mistral_text),
    (re.compile(r"mistral\.mistral-large-2407"), _mistral_chat),
    (re.compile(r"(?:mistral|openai|qwen|deepseek|google|nvidia)\."), _openai_shape),
)


def _of_text(request: Request, prompt: Any, limit: int) -> Answer:
    if not isinstance(prompt, str):
        raise _malformed("#/prompt: expected type: String")
    return reply(Prompt(prompt, "", count_tokens(prompt), limit), request.spells)


def _served(answer: Answer, body: dict[str, Any]) -> Served:
    return Served(body, answer.input_tokens, answer.output_tokens)


def _last_user(messages: list[dict[str, Any]]) -> str:
    for message in reversed(messages):
        if message.get("role") == "user":
            return text_of(message.get("content"))
    return ""


def _message_tokens(messages: list[dict[str, Any]]) -> int:
    return sum(count_tokens(text_of(message.get("content"))) for message in messages)


def _range(body: dict[str, Any], key: str, text: str) -> None:
    value = body.get(key)
    if value is not None and not (isinstance(value, int | float) and 0 <= value <= 1):
        raise Refusal(400, text)


def _malformed(text: str) -> Refusal:
    return Refusal(
        400, f"Malformed input request: {text}, please reformat your input and try again."
    )


def _no_extraneous(body: dict[str, Any], allowed: frozenset[str]) -> None:
    for key in body:
        if key not in allowed:
            raise _malformed(f"#: extraneous key [{key}] is not permitted")


def _need(body: dict[str, Any], key: str) -> None:
    if body.get(key) is None:
        raise _malformed(f"#: required key [{key}] not found")
