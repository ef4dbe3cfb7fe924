"""Bodies of the model families on Bedrock: answered in their shape, refused in others'."""

from __future__ import annotations

from typing import Any

import pytest

from batchinference.sandbox import dialects, spells
from batchinference.sandbox.refusals import Refusal

CLAUDE = "us.anthropic.claude-sonnet-4-20250514-v1:0"
NOVA = "amazon.nova-lite-v1:0"
LLAMA = "us.meta.llama3-1-8b-instruct-v1:0"
TITAN = "amazon.titan-embed-text-v2:0"
GPT_OSS = "openai.gpt-oss-20b-1:0"
QWEN = "qwen.qwen3-32b-v1:0"
TURN = {"role": "user", "content": "hello there"}
BLOCKS = {"role": "user", "content": [{"text": "hello there"}]}
CLAUDE_BODY = {
    "anthropic_version": "bedrock-2023-05-31",
    "max_tokens": 100,
    "messages": [TURN],
}


def answer(model: str, body: dict[str, Any], kind: str = "InvokeModel") -> Any:
    request = dialects.Request(body, model, "tag", 1_700_000_000, spells.NONE)
    return dialects.serve(request, kind)


def dig(body: Any, *path: Any) -> Any:
    for step in path:
        body = body[step]
    return body


@pytest.mark.parametrize(
    ("model", "body", "text_path", "input_path", "finish"),
    [
        (CLAUDE, CLAUDE_BODY, ("content", 0, "text"), ("usage", "input_tokens"),
         ("stop_reason", "end_turn")),
        (NOVA, {"messages": [BLOCKS]}, ("output", "message", "content", 0, "text"),
         ("usage", "inputTokens"), ("stopReason", "end_turn")),
        (LLAMA, {"prompt": "hello there"}, ("generation",), ("prompt_token_count",),
         ("stop_reason", "stop")),
        (QWEN, {"messages": [TURN]}, ("choices", 0, "message", "content"),
         ("usage", "prompt_tokens"), ("object", "chat.completion")),
    ],
)  # fmt: skip
def test_each_family_answers_in_its_own_shape(model, body, text_path, input_path, finish):
    served = answer(model, body)
    assert dig(served.body, *text_path) == "Summary: hello there"
    assert dig(served.body, *input_path) == 2
    assert served.body[finish[0]] == finish[1]
    assert (served.input_tokens, served.output_tokens) == (2, 3)


def test_gpt_oss_puts_its_reasoning_before_the_answer():
    served = answer(GPT_OSS, {"messages": [TURN]})
    content = served.body["choices"][0]["message"]["content"]
    assert content.startswith("<reasoning>")
    assert content.endswith("Summary: hello there")


def test_old_and_new_mistral_speak_differently():
    old = answer("mistral.mistral-7b-instruct-v0:2", {"prompt": "hello there"})
    assert old.body == {"outputs": [{"text": "Summary: hello there", "stop_reason": "stop"}]}
    new = answer("mistral.mistral-large-2407-v1:0", {"messages": [TURN]})
    assert new.body["choices"][0]["stop_reason"] == "stop"
    assert "usage" not in new.body


def test_titan_embeds_one_text_at_the_chosen_size():
    served = answer(TITAN, {"inputText": "hello there", "dimensions": 256, "normalize": True})
    assert len(served.body["embedding"]) == 256
    assert served.body["inputTextTokenCount"] == 2
    assert served.body["embeddingsByType"]["float"] == served.body["embedding"]
    assert len(answer(TITAN, {"inputText": "x"}).body["embedding"]) == 1024
    image = answer(
        "amazon.titan-embed-image-v1",
        {"inputText": "x", "embeddingConfig": {"outputEmbeddingLength": 384}},
    )
    assert len(image.body["embedding"]) == 384


def test_claude_calls_the_tool_it_is_told_to():
    schema = {"type": "object", "properties": {"label": {"enum": ["a", "b"]}}}
    tools = [{"name": "label", "description": "d", "input_schema": schema}]
    body = {**CLAUDE_BODY, "tools": tools, "tool_choice": {"type": "tool", "name": "label"}}
    served = answer(CLAUDE, body)
    assert served.body["stop_reason"] == "tool_use"
    [block] = served.body["content"]
    assert (block["type"], block["name"]) == ("tool_use", "label")
    assert block["input"]["label"] in {"a", "b"}


def test_converse_answers_for_every_chat_model_and_fills_schemas():
    body: dict[str, Any] = {
        "system": [{"text": "Answer one of: red, green or blue."}],
        "messages": [{"role": "user", "content": [{"text": "the grass is green"}]}],
        "inferenceConfig": {"maxTokens": 10, "temperature": 0.5, "stopSequences": ["x"]},
    }
    for model in (CLAUDE, NOVA, LLAMA, GPT_OSS):
        served = answer(model, body, "Converse")
        assert served.body["output"]["message"]["content"] == [{"text": "green"}]
        assert served.body["stopReason"] == "end_turn"
    schema = '{"type": "object", "properties": {"n": {"type": "integer"}}}'
    body["outputConfig"] = {
        "textFormat": {
            "type": "json_schema",
            "structure": {"jsonSchema": {"schema": schema, "name": "n"}},
        }
    }
    text = answer(CLAUDE, body, "Converse").body["output"]["message"]["content"][0]["text"]
    assert text.startswith('{"n": ')


def test_converse_takes_images_as_base64_text():
    image = {"image": {"format": "png", "source": {"bytes": "AAAA"}}}
    body = {"messages": [{"role": "user", "content": [{"text": "look"}, image]}]}
    assert answer(CLAUDE, body, "Converse").output_tokens == 2
    image["image"]["format"] = "jpg"
    with pytest.raises(Refusal, match="enum"):
        answer(CLAUDE, body, "Converse")


@pytest.mark.parametrize(
    ("model", "body", "kind", "words", "reason"),
    [
        (CLAUDE, {"max_tokens": 9, "messages": [TURN]}, "InvokeModel",
         "anthropic_version: Field required", "no version"),
        (CLAUDE, {"anthropic_version": "bedrock-2023-05-31", "messages": [TURN]}, "InvokeModel",
         "max_tokens: Field required", "no limit"),
        (CLAUDE, {**CLAUDE_BODY, "model": "x"}, "InvokeModel", "Extra inputs", "model in the body"),
        (CLAUDE, {**CLAUDE_BODY, "messages": [{"role": "system", "content": "x"}]}, "InvokeModel",
         "system", "a system message"),
        (CLAUDE, {**CLAUDE_BODY, "messages": []}, "InvokeModel", "at least one", "no messages"),
        (CLAUDE, {**CLAUDE_BODY, "temperature": 2}, "InvokeModel", "temperature", "too hot"),
        (CLAUDE, {**CLAUDE_BODY, "temperature": 1, "top_p": 1}, "InvokeModel", "both", "two knobs"),
        (CLAUDE, {**CLAUDE_BODY, "tools": [{"type": "function", "function": {}}]}, "InvokeModel",
         "function", "an OpenAI tool"),
        (CLAUDE, {"messages": [BLOCKS]}, "InvokeModel", "anthropic_version", "a Converse body"),
        (NOVA, {"messages": [TURN]}, "InvokeModel", "expected type: JSONArray", "bare text"),
        (NOVA, {"messages": [BLOCKS], "max_tokens": 5}, "InvokeModel", "extraneous key",
         "OpenAI's limit"),
        (LLAMA, {"messages": [TURN]}, "InvokeModel", "extraneous key", "chat for Llama"),
        (LLAMA, {"prompt": "x", "stop": ["y"]}, "InvokeModel", "extraneous key", "no stop"),
        (TITAN, {"inputText": ["a", "b"]}, "InvokeModel", "expected type: String", "a list"),
        (TITAN, {"inputText": "a", "dimensions": 100}, "InvokeModel", "dimensions", "odd size"),
        (TITAN, {"input": "a"}, "InvokeModel", "extraneous key", "OpenAI's input"),
        (TITAN, {"messages": [BLOCKS]}, "Converse", "doesn't support the model", "no chat model"),
        (QWEN, {"messages": [TURN], "model": "gpt-4o"}, "InvokeModel", "does not match", "model"),
        (QWEN, {"messages": [TURN], "stream": True}, "InvokeModel", "(?i)stream", "streaming"),
        (NOVA, {"messages": [BLOCKS], "toolConfig": {"tools": []}}, "Converse", "Tool use",
         "tools in Converse"),
        (NOVA, {"messages": [BLOCKS], "modelId": "x"}, "Converse", "modelId", "the job's member"),
        (NOVA, {"messages": [BLOCKS], "serviceTier": {"type": "flex"}}, "Converse", "tier", "tier"),
        (NOVA, {"messages": [BLOCKS], "max_tokens": 5}, "Converse", "extraneous key", "unknown"),
        (NOVA, {"messages": [TURN]}, "Converse", "content", "bare text in Converse"),
        (NOVA, {"messages": [BLOCKS], "inferenceConfig": {"temperature": 1.5}}, "Converse",
         "less than or equal to 1", "too hot"),
        (NOVA, {"messages": [BLOCKS], "inferenceConfig": {"maxTokens": 0}}, "Converse",
         "greater than or equal to 1", "no room"),
        (NOVA, {"messages": [BLOCKS, BLOCKS]}, "Converse", "alternate", "user twice"),
        (NOVA, {"messages": [{"role": "assistant", "content": [{"text": "x"}]}]}, "Converse",
         "start with a user", "assistant first"),
        (NOVA, {"messages": [{"role": "user", "content": [{"text": " "}]}]}, "Converse", "blank",
         "blank text"),
        (NOVA, {"messages": [{"role": "user", "content": [{"text": "x"},
          {"cachePoint": {"type": "default"}}]}]}, "Converse", "cachePoint", "prompt caching"),
        (NOVA, {}, "Converse", "user message", "nothing at all"),
    ],
)  # fmt: skip
def test_bodies_in_another_dialect_are_refused_with_400(model, body, kind, words, reason):
    with pytest.raises(Refusal, match=words) as refused:
        answer(model, body, kind)
    assert refused.value.status == 400, reason


@pytest.mark.parametrize(
    ("model", "accepted", "reason"),
    [
        (CLAUDE, True, "a cross-region profile"),
        ("global.anthropic.claude-haiku-4-5-20251001-v1:0", True, "a global profile"),
        ("anthropic.claude-3-haiku-20240307-v1:0", True, "an older model by its bare id"),
        ("anthropic.claude-sonnet-4-20250514-v1:0", False, "only through a profile"),
        (f"arn:aws:bedrock:us-east-1:123456789012:inference-profile/{CLAUDE}", True, "ARN"),
        ("arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-lite-v1:0", True, "ARN"),
        ("arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/ab12", True, "ARN"),
        ("amazon.nova-premier-v1:0", False, "only through a profile"),
        ("us.amazon.nova-premier-v1:0", True, "through a profile"),
        ("deepseek.r1-v1:0", False, "not batch-capable"),
        ("acme.model", False, "unknown maker"),
    ],
)
def test_models_are_accepted_as_bedrock_accepts_them(model, accepted, reason):
    assert (dialects.model_problem(model) is None) == accepted, reason
