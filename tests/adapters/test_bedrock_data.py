"""Records, results and cleaning up for Bedrock, whose data lies in the staging bucket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinference.adapters.bedrock import BedrockData, BedrockProvider
from batchinference.adapters.bedrock.lines import _any, _converse_text, result
from batchinference.adapters.s3 import S3Store
from batchinference.errors import Permanent, Stalled
from batchinference.model.batch import Accepted
from batchinference.model.run import Place, Run
from batchinference.ports import UnsupportedRequest
from batchinference.sandbox import Sandbox
from builders import anytime

from .conftest import AWS_SECRET, BUCKET
from .test_bedrock_request import ROLE, SUBMISSION, run_with

STAGING = f"s3://{BUCKET}/ml/.staging/run/"


@pytest.fixture
def run(store: S3Store) -> Iterator[Run]:
    yield run_with(staging=STAGING)
    store.delete_prefix(STAGING)


@pytest.fixture
def data(store: S3Store, waits: list[float]) -> BedrockData:
    return BedrockData(store, model="amazon.nova-lite-v1:0", sleep=waits.append)


# ---------------------------------------------------------------- lines


def line(**members: Any) -> bytes:
    return json.dumps({"recordId": "r0000000007", "modelInput": {"x": 1}, **members}).encode()


OUTPUT = {
    "output": {"message": {"role": "assistant", "content": [{"text": "hi", "image": None}]}},
    "stopReason": "end_turn",
    "usage": {"inputTokens": 3, "outputTokens": 4, "totalTokens": 7},
    "trace": None,
}
CLAUDE = {
    "content": [{"type": "text", "text": "hi"}],
    "usage": {"input_tokens": 5, "output_tokens": 6},
}
ROWS: list[tuple[str, bytes, dict[str, Any]]] = [
    (
        "Converse, nulls and all",
        line(modelOutput=OUTPUT),
        {
            "wire_id": "r0000000007",
            "status_code": 200,
            "error_code": "",
            "input_tokens": 3,
            "output_tokens": 4,
        },
    ),
    (
        "a model's own format is passed on",
        line(modelOutput=CLAUDE),
        {"body": CLAUDE, "input_tokens": 5, "output_tokens": 6, "error_code": ""},
    ),
    (
        "Llama's words for tokens",
        line(modelOutput={"generation": "x", "prompt_token_count": 1, "generation_token_count": 2}),
        {"input_tokens": 1, "output_tokens": 2},
    ),
    (
        "Titan embeddings",
        line(modelOutput={"embedding": [0.5], "inputTextTokenCount": 9}),
        {"input_tokens": 9, "output_tokens": 0},
    ),
    ("error: null beside an answer", line(modelOutput=OUTPUT, error=None), {"error_code": ""}),
    (
        "an error with a number",
        line(error={"errorCode": 400, "errorMessage": "Malformed input request"}),
        {
            "status_code": 400,
            "error_code": "ProviderError",
            "error_message": "Malformed input request",
            "unbilled": False,
        },
    ),
    (
        "an error with a number in a string",
        line(error={"errorCode": "429", "errorMessage": "slow"}),
        {"status_code": 429, "unbilled": False},
    ),
    (
        "an error with a word",
        line(error={"errorCode": "ThrottlingException", "errorMessage": "slow"}),
        {"status_code": 0, "error_code": "ThrottlingException"},
    ),
    (
        "never processed",
        line(error={"errorCode": 400, "errorMessage": "x", "expired": True}),
        {"error_code": "BatchExpired", "unbilled": True},
    ),
    ("an error as a sentence", line(error="it broke"), {"error_message": "it broke"}),
    (
        "an error wins over an answer",
        line(modelOutput=OUTPUT, error={"errorCode": 500}),
        {"status_code": 500},
    ),
    (
        "an odd code",
        line(error={"errorCode": [1]}),
        {"error_code": "ProviderError", "status_code": 0},
    ),
    ("neither answer nor error", line(), {"error_code": "ProviderError", "unbilled": False}),
    ("an empty answer", line(modelOutput={}), {"error_code": "ProviderError"}),
    (
        "Converse of another shape",
        line(modelOutput={"output": {"message": {"content": 7}}}),
        {"error_code": "ProviderError"},
    ),
    ("no id", b'{"modelOutput": {"x": 1}}', {"wire_id": ""}),
    ("no JSON", b'{"recordId": "r1"', {"wire_id": "", "error_code": "UnreadableLine"}),
    ("no object", b"7", {"wire_id": "", "error_code": "UnreadableLine"}),
    ("bad UTF-8", b'{"recordId": "\xff"}', {"wire_id": "", "error_code": "UnreadableLine"}),
]


@pytest.mark.parametrize(("reason", "given", "want"), ROWS, ids=[row[0] for row in ROWS])
def test_result_lines(reason: str, given: bytes, want: dict[str, Any]) -> None:
    found = result(given, "amazon.nova-lite-v1:0")
    assert {name: getattr(found, name) for name in want} == want, reason


def test_a_converse_answer_is_a_chat_completion() -> None:
    body = result(line(modelOutput=OUTPUT), "amazon.nova-lite-v1:0").body
    assert body["model"] == "amazon.nova-lite-v1:0"
    assert body["choices"][0]["message"]["content"] == "hi"
    assert body["choices"][0]["finish_reason"] == "stop"


members = st.sampled_from(
    [
        "output",
        "message",
        "content",
        "text",
        "toolUse",
        "image",
        "stopReason",
        "usage",
        "name",
        "inputTokens",
        "outputTokens",
        "cacheReadInputTokens",
        "cacheReadInputTokenCount",
    ]
)
leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.just(1.5)
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(members, inner, max_size=4),
    max_leaves=8,
)


def often(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return usual | usual | usual | trees


blocks = often(st.fixed_dictionaries({"text": st.text() | st.none()}, optional={"toolUse": trees}))
messages = often(st.fixed_dictionaries({"content": often(st.lists(blocks, max_size=3))}))
numbers = st.dictionaries(members, often(st.integers(-2, 50) | st.none()), max_size=5)
outputs = often(
    st.fixed_dictionaries(
        {"output": often(st.fixed_dictionaries({"message": messages}))},
        optional={"usage": often(numbers), "stopReason": often(st.just("max_tokens")), "x": trees},
    )
)


@given(
    st.fixed_dictionaries(
        {"modelOutput": outputs},
        optional={"recordId": often(st.just("r0000000001")), "error": often(st.none())},
    )
)
def test_the_quick_look_at_an_answer_sees_what_the_thorough_one_does(whole: dict[str, Any]) -> None:
    written = json.dumps(whole).encode()
    quick, thorough = _converse_text(written, "m"), _any(written, "m")
    assert quick is None or quick == thorough
    assert result(written, "m") == thorough


def test_the_quick_look_is_enough_for_a_usual_answer() -> None:
    assert _converse_text(line(modelOutput=OUTPUT), "m") is not None


def test_a_request_is_translated_and_a_native_one_untouched(data: BedrockData) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    assert json.loads(data.encode(7, {"url": "/v1/chat/completions", "body": body}, "m")) == {
        "recordId": "r0000000007",
        "modelInput": {
            "messages": [{"role": "user", "content": [{"text": "hi"}]}],
            "inferenceConfig": {"maxTokens": 5},
        },
    }
    native = {"recordId": "mine", "modelInput": {"anthropic_version": "x", "stream": 1}}
    assert json.loads(data.encode(7, native, "m")) == {
        "recordId": "r0000000007",
        "modelInput": native["modelInput"],
    }
    for bad in ({**body, "stream": True}, {**body, "tools": [{"type": "function"}]}):
        with pytest.raises(UnsupportedRequest):
            data.encode(7, {"body": bad}, "m")


# ---------------------------------------------------------------- places


def test_an_upload_is_a_copy_inside_s3(
    data: BedrockData, store: S3Store, run: Run, sandbox: Sandbox
) -> None:
    store.put(f"{STAGING}shards/7.jsonl", b"records\n")
    ref = data.upload(store, f"{STAGING}shards/7.jsonl", run, SUBMISSION)
    assert ref == f"{STAGING}submit/00007-2/records.jsonl"
    assert store.get(ref) == b"records\n"
    assert "CopyObject" in sandbox.control.calls("s3")
    assert data.upload(store, f"{STAGING}shards/7.jsonl", run, SUBMISSION) == ref


def test_without_object_storage_there_is_no_bedrock(data: BedrockData, store: S3Store) -> None:
    run = replace(run_with(), staging=Place("configmap://system/staging"))
    with pytest.raises(Stalled, match="stagingURI"):
        data.upload(store, "configmap://system/staging", run, SUBMISSION)
    data.delete_files(run)


def test_results_are_every_output_file_under_the_jobs_folder(
    data: BedrockData, store: S3Store, run: Run
) -> None:
    prefix = f"{STAGING}out/00007-2/abcdefghijkl/"
    store.put(f"{prefix}a.jsonl.out", b"a")
    store.put(f"{prefix}nested/b.jsonl.out", b"b\n")
    store.put(f"{prefix}c.jsonl.out", b"")
    store.put(f"{prefix}manifest.json.out", b"no result")
    store.put(f"{STAGING}out/00007-2/another/x.jsonl.out", b"no")
    assert b"".join(data.open_results([prefix])) == b"a\nb\n"


def test_results_that_are_gone_are_lost_unless_there_may_be_none(
    data: BedrockData, run: Run, waits: list[float]
) -> None:
    prefix = f"{STAGING}out/00007-2/abcdefghijkl/"
    assert list(data.open_results([f"maybe:{prefix}"])) == []
    assert waits == []
    with pytest.raises(Permanent) as lost:
        list(data.open_results([prefix]))
    assert lost.value.reason == "AnswerLost"
    assert waits, "results may show up a moment after the end"


async def test_from_a_staged_shard_to_its_answers(
    sandbox: Sandbox, storage: dict[str, Any], store: S3Store, data: BedrockData, run: Run
) -> None:
    settings = {
        "bedrock": {
            "region": "us-east-1",
            "serviceRoleARN": ROLE,
            "endpointURL": sandbox.bedrock_url,
            "credentialsSecretRef": {"name": "aws"},
        },
        "storage": storage,
    }
    sandbox.control.settings(bedrock={"converse_nulls": True, "code_as_string": True})
    provider = BedrockProvider(settings, {"bedrock": AWS_SECRET}, store)
    bodies = [
        {"messages": [{"role": "user", "content": text}]}
        for text in ("Say hello", "SANDBOX:error-400", "Say hello again")
    ]
    lines = [data.encode(row, {"body": body}, "m") for row, body in enumerate(bodies)]
    store.put(f"{STAGING}shards/7.jsonl", b"\n".join([*lines, b""]))
    ref = data.upload(store, f"{STAGING}shards/7.jsonl", run, SUBMISSION)
    outcome = await provider.submit(provider.create_request(run, SUBMISSION, ref), anytime)
    assert isinstance(outcome, Accepted), outcome
    sandbox.control.wait_for(lambda state: "Completed" in state["counts"]["bedrock"])
    view = await provider.get(outcome.batch.id)
    assert view is not None
    assert (view.total, view.completed, view.failed) == (3, 2, 1)
    answers = {
        found.wire_id: found
        for found in map(data.decode, b"".join(data.open_results(view.files)).splitlines())
    }
    assert sorted(answers) == ["r0000000000", "r0000000001", "r0000000002"]
    assert [answers[key].is_answer for key in sorted(answers)] == [True, False, True]
    assert answers["r0000000001"].status_code == 400
    assert answers["r0000000000"].body["choices"][0]["message"]["content"]
    data.delete_files(run)
    assert [info.uri for info in store.list(STAGING)] == [f"{STAGING}shards/7.jsonl"]
    await provider.close()
