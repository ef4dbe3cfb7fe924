"""The Converse request body as a batch record: what is allowed in it, and its prompt.

Plain text conversations are checked by hand; anything richer against the service model.
Must not know answers, files or jobs.
"""

from typing import Any

from . import aws_model
from .answers import Prompt, count_tokens
from .openai_endpoints import parse_schema, text_of
from .refusals import Refusal

_PLAIN_KEYS = frozenset({"messages", "system", "inferenceConfig"})
_REFUSED = {  # members that a batch record may not carry
    "toolConfig": "Tool use is not supported with Converse in batch inference.",
    "guardrailConfig": "Guardrails are not supported in batch inference.",
    "performanceConfig": "Performance configuration is not supported in batch inference.",
    "serviceTier": "Service tiers are not supported in batch inference.",
    "requestMetadata": "Request metadata is not supported in batch inference.",
    "modelId": "modelId belongs to the job, not to its records.",
}


def prompt_of(body: dict[str, Any]) -> Prompt:
    """Check a Converse body and read its prompt.

    Raises:
        Refusal: status 400, in Bedrock's words.
    """
    for key, text in _REFUSED.items():
        if key in body:
            raise Refusal(400, f"Malformed input request: {text}")
    if not _is_plain(body):
        _check(body)
    messages = body["messages"]
    _check_turns(messages)
    system = text_of(body.get("system"))
    tokens = count_tokens(system) + sum(
        count_tokens(text_of(message["content"])) for message in messages
    )
    user = next(text_of(turn["content"]) for turn in reversed(messages) if turn["role"] == "user")
    limit = (body.get("inferenceConfig") or {}).get("maxTokens")
    return Prompt(user, system, tokens, limit, _schema_of(body))


def _is_plain(body: dict[str, Any]) -> bool:
    messages = body.get("messages")
    if not (body.keys() <= _PLAIN_KEYS and isinstance(messages, list) and messages):
        return False
    for message in messages:
        if not (
            isinstance(message, dict)
            and message.keys() == {"role", "content"}
            and message["role"] in {"user", "assistant"}
            and _are_texts(message["content"])
        ):
            return False
    config = body.get("inferenceConfig", {})
    return (
        _are_texts(body.get("system", []))
        and isinstance(config, dict)
        and config.keys() <= {"maxTokens"}
        and isinstance(config.get("maxTokens", 1), int)
        and config.get("maxTokens", 1) >= 1
    )


def _are_texts(blocks: Any) -> bool:
    return isinstance(blocks, list) and all(
        isinstance(block, dict) and block.keys() == {"text"} and isinstance(block["text"], str)
        for block in blocks
    )


def _check(body: dict[str, Any]) -> None:
    model = aws_model.load("bedrock-runtime")
    known = model.shapes["ConverseRequest"]["members"]
    for key in body:
        if key not in known:
            raise Refusal(
                400,
                f"Malformed input request: #: extraneous key [{key}] is not permitted, "
                "please reformat your input and try again.",
            )
    if not body.get("messages"):
        raise Refusal(400, "A conversation must start with a user message. Try again.")
    _refuse_cache_points(body)
    try:
        problems = model.problems("ConverseRequest", {"modelId": "m", **body})
    except aws_model.WrongType as error:
        raise Refusal(400, f"Malformed input request: {error}") from error
    if problems:
        raise Refusal(400, aws_model.validation_text(problems))


def _refuse_cache_points(body: dict[str, Any]) -> None:
    lists = [body.get("system"), *(turn.get("content") for turn in body["messages"])]
    for blocks in lists:
        for block in blocks if isinstance(blocks, list) else ():
            if isinstance(block, dict) and "cachePoint" in block:
                raise Refusal(
                    400, "Malformed input request: cachePoint is not supported in batch inference."
                )


def _check_turns(messages: list[dict[str, Any]]) -> None:
    expected = "user"
    for index, message in enumerate(messages):
        if message["role"] != expected:
            text = (
                "A conversation must start with a user message. Try again with a conversation "
                "that starts with a user message."
                if index == 0
                else "A conversation must alternate between user and assistant roles. Make sure "
                "the conversation alternates between user and assistant roles and try again."
            )
            raise Refusal(400, text)
        for place, block in enumerate(message["content"]):
            if "text" in block and not block["text"].strip():
                raise Refusal(
                    400,
                    f"The text field in the ContentBlock object at messages.{index}.content."
                    f"{place} is blank. Add text to the text field, and try again.",
                )
        expected = "assistant" if expected == "user" else "user"


def _schema_of(body: dict[str, Any]) -> dict[str, Any] | None:
    text_format = (body.get("outputConfig") or {}).get("textFormat")
    if not text_format:
        return None
    try:
        return parse_schema(text_format["structure"]["jsonSchema"]["schema"])
    except (KeyError, ValueError, TypeError) as error:
        raise Refusal(
            400, "outputConfig.textFormat.structure.jsonSchema.schema must be JSON text."
        ) from error
