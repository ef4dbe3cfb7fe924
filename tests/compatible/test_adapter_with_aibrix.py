"""The OpenAI adapter against a batch server that somebody else wrote: AIBrix 0.8.0.

What these tests find out about the server stands in docs/how-to/openai-compatible-servers.md.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import msgspec
import pytest

from batchinference.adapters.openai_batch import OpenAIBatchProvider, OpenAIData, paging
from batchinference.errors import Permanent
from batchinference.model.batch import (
    Accepted,
    BatchState,
    BatchView,
    CancelOutcome,
    RefusalKind,
    Refused,
    SubmissionID,
)
from batchinference.ports import ObjectInfo, ResultLine
from batchinference.records.wire import wire_id
from builders import anytime, run_of
from compatible.model_stub import REFUSE, ModelStub, answer_to
from compatible_server import CompatibleServer

MODEL = "local-model"
ABSENT = "00000000-0000-4000-8000-000000000000"


class StagedBytes:
    """The part of an object store that an upload reads."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def head(self, uri: str, version: str = "") -> ObjectInfo:
        return ObjectInfo(uri, len(self._data), "etag")

    def read(self, info: ObjectInfo, start: int = 0) -> Iterator[bytes]:
        yield self._data[start:]


@dataclass(frozen=True)
class Client:
    """Both halves of the adapter, and one run whose name no other test uses."""

    provider: OpenAIBatchProvider
    data: OpenAIData
    tag: str

    def submission(self, shard: int = 0) -> SubmissionID:
        return SubmissionID(self.tag, shard, 1, "00c0ffee00c0")

    def upload(self, prompts: list[str], shard: int = 0) -> str:
        lines = [
            self.data.encode(
                row,
                {
                    "custom_id": wire_id(row),
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": {"messages": [{"role": "user", "content": p}], "temperature": 0},
                },
                MODEL,
            )
            for row, p in enumerate(prompts)
        ]
        staged = StagedBytes(b"".join(line + b"\n" for line in lines))
        return self.data.upload(staged, "s3://b/k.jsonl", run_of(), self.submission(shard))

    async def create(self, input_ref: str, shard: int = 0) -> BatchView:
        request = self.provider.create_request(run_of(), self.submission(shard), input_ref)
        outcome = await self.provider.submit(request, anytime)
        assert isinstance(outcome, Accepted), outcome
        return outcome.batch

    async def until(
        self, batch_id: str, reached: Callable[[BatchView], bool], timeout_s: float = 30
    ) -> BatchView:
        end = time.monotonic() + timeout_s
        while True:
            seen = await self.provider.get(batch_id)
            assert seen is not None
            if reached(seen):
                return seen
            assert time.monotonic() < end, seen
            await asyncio.sleep(0.05)

    async def over(self, batch_id: str) -> BatchView:
        return await self.until(batch_id, lambda batch: batch.state.is_over)

    def lines(self, batch: BatchView) -> dict[str, ResultLine]:
        text = b"".join(b"".join(self.data.open_results([file])) for file in batch.files)
        found = [self.data.decode(line) for line in text.splitlines()]
        assert max(Counter(line.wire_id for line in found).values()) == 1
        return {line.wire_id: line for line in found}


@pytest.fixture(scope="module")
def model() -> Iterator[ModelStub]:
    with ModelStub() as running:
        yield running


@pytest.fixture(scope="module")
def server(
    model: ModelStub, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CompatibleServer]:
    with CompatibleServer.start(tmp_path_factory.mktemp("aibrix"), model.url) as running:
        yield running


@pytest.fixture
async def client(server: CompatibleServer, model: ModelStub) -> AsyncIterator[Client]:
    settings = {"openAI": {"baseURL": server.base_url}}
    provider = OpenAIBatchProvider(settings, {}, identity="InferenceProvider/ml/aibrix")
    data = OpenAIData(settings, {}, sleep=lambda _seconds: None)
    yield Client(provider, data, secrets.token_hex(10))
    model.release()
    data.close()
    await provider.close()


def said(line: ResultLine) -> str:
    """The answer's text."""
    assert line.is_answer, line
    body = msgspec.json.decode(line.body)
    return body["choices"][0]["message"]["content"]


def answers(lines: Mapping[str, ResultLine]) -> dict[str, str]:
    """The answers' texts by the records' ids; errors are left out."""
    return {wire: said(line) for wire, line in lines.items() if line.is_answer}


def prompts(mark: str, number: int) -> list[str]:
    return [f"{mark} question {n}" for n in range(number)]


# ---------------------------------------------------------------- the whole way


async def test_a_batch_is_found_by_its_metadata_and_every_answer_is_its_own(
    client: Client, model: ModelStub
) -> None:
    asked = prompts(client.tag, 30)
    assert (await client.provider.check()).id.endswith("/v1/InferenceProvider/ml/aibrix")
    file_id = client.upload(asked)
    assert await client.provider.input_readable(file_id)
    model.hold_after(5)
    made = await client.create(file_id)
    assert (made.submission, made.input_ref) == (client.submission(), file_id)
    page = await client.provider.page(None, None)
    listed = [b for b in page.batches if b.submission and b.submission.tag == client.tag]
    assert [(b.id, b.submission) for b in listed] == [(made.id, client.submission())]
    running = await client.until(made.id, lambda b: b.state is BatchState.IN_PROGRESS)
    assert (running.files, running.created_at) == ((), made.created_at)
    model.release()
    over = await client.over(made.id)
    assert (over.state, over.total, over.completed) == (BatchState.COMPLETED, 30, 30)
    assert over.ended_at is not None
    lines = client.lines(over)
    assert answers(lines) == {wire_id(row): answer_to(prompt) for row, prompt in enumerate(asked)}
    assert all(line.input_tokens == 3 and line.output_tokens == 5 for line in lines.values())
    assert model.calls(client.tag) == Counter(asked)
    sent = model.body_of(asked[0])
    assert (sent["model"], sent["temperature"]) == (MODEL, 0)


async def test_records_that_the_model_refuses_are_errors_beside_the_answers(
    client: Client,
) -> None:
    asked = [f"{p} {REFUSE}" if n % 3 == 0 else p for n, p in enumerate(prompts(client.tag, 9))]
    over = await client.over((await client.create(client.upload(asked))).id)
    assert (over.state, over.completed, over.failed) == (BatchState.COMPLETED, 6, 3)
    assert len(over.files) == 2
    lines = client.lines(over)
    assert len(lines) == 9
    for row, prompt in enumerate(asked):
        line = lines[wire_id(row)]
        assert line.is_answer is (REFUSE not in prompt)
        # The server called its model, so nobody can say that it cost nothing.
        assert not line.unbilled
        if not line.is_answer:
            assert line.error_code == "inference_failed"
            assert "400" in line.error_message


async def test_a_batch_whose_records_all_fail_is_completed_with_an_error_file_only(
    client: Client,
) -> None:
    asked = [f"{p} {REFUSE}" for p in prompts(client.tag, 4)]
    over = await client.over((await client.create(client.upload(asked))).id)
    assert (over.state, over.completed, over.failed) == (BatchState.COMPLETED, 0, 4)
    assert len(over.files) == 1
    assert {line.error_code for line in client.lines(over).values()} == {"inference_failed"}


async def test_a_cancelled_batch_keeps_what_was_answered(client: Client, model: ModelStub) -> None:
    asked = prompts(client.tag, 40)
    model.hold_after(10)
    made = await client.create(client.upload(asked))
    await client.until(made.id, lambda _b: model.calls(client.tag).total() > 10)
    assert await client.provider.cancel(made.id) is CancelOutcome.ACCEPTED
    model.release()
    over = await client.over(made.id)
    assert over.state is BatchState.CANCELLED
    lines = client.lines(over)
    assert 0 < len(lines) < 40
    assert (
        answers(lines).items()
        <= {wire_id(row): answer_to(prompt) for row, prompt in enumerate(asked)}.items()
    )
    assert await client.provider.cancel(made.id) is CancelOutcome.ALREADY_OVER


async def test_a_listing_is_followed_to_its_end_over_small_pages(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [await client.create(client.upload(prompts(client.tag, 1), n), n) for n in range(7)]
    monkeypatch.setattr(paging, "LIMIT", 2)
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = await client.provider.page(cursor, None)
        assert len(page.batches) <= 2
        seen += [batch.id for batch in page.batches]
        cursor = page.cursor
        if cursor is None:
            break
    assert max(Counter(seen).values()) == 1
    assert {batch.id for batch in made} <= set(seen)
    assert client.provider.traits.lists_complete
    for batch in made:
        await client.over(batch.id)


# ---------------------------------------------------------------- what is not there


async def test_a_batch_of_a_deleted_file_fails_with_nothing_processed(
    client: Client, model: ModelStub
) -> None:
    file_id = client.upload(prompts(client.tag, 2))
    await client.provider.delete_input(file_id)
    assert not await client.provider.input_readable(file_id)
    await client.provider.delete_input(file_id)
    over = await client.over((await client.create(file_id)).id)
    assert over.state is BatchState.FAILED
    assert over.failure is not None
    assert (over.failure.nothing_processed, over.failure.quota) == (True, False)
    assert not model.calls(client.tag)


async def test_what_the_server_does_not_know_is_absent_and_not_an_error(client: Client) -> None:
    assert await client.provider.get(ABSENT) is None
    assert await client.provider.cancel(ABSENT) is CancelOutcome.NOT_FOUND
    assert not await client.provider.input_readable(ABSENT)
    with pytest.raises(Permanent) as gone:
        list(client.data.open_results([ABSENT]))
    assert gone.value.reason == "AnswerLost"


async def test_an_endpoint_that_the_server_does_not_have_is_refused_for_certain(
    client: Client,
) -> None:
    run = run_of()
    run = replace(run, spec={**run.spec, "operation": "Responses"})
    file_id = client.upload(prompts(client.tag, 1))
    request = client.provider.create_request(run, client.submission(), file_id)
    outcome = await client.provider.submit(request, anytime)
    assert isinstance(outcome, Refused)
    assert outcome.kind is RefusalKind.INVALID


async def test_uploads_that_a_crash_left_behind_are_swept_by_their_names(client: Client) -> None:
    left = [client.upload(prompts(client.tag, 1), shard) for shard in range(3)]
    other = replace(client, tag=secrets.token_hex(10))
    kept = other.upload(prompts(other.tag, 1))
    run = run_of(shards=0, tag=client.tag)
    client.data.delete_files(run)
    assert [await client.provider.input_readable(file_id) for file_id in left] == [False] * 3
    assert await client.provider.input_readable(kept)


# ---------------------------------------------------------------- a server that dies


async def test_a_batch_goes_on_after_the_server_was_killed(
    client: Client, model: ModelStub, server: CompatibleServer
) -> None:
    asked = prompts(client.tag, 40)
    model.hold_after(10)
    made = await client.create(client.upload(asked))
    await client.until(made.id, lambda _b: model.calls(client.tag).total() > 10)
    server.program.kill()
    model.release()
    server.program.start()
    server.wait_until_it_answers()
    over = await client.over(made.id)
    assert over.state is BatchState.COMPLETED
    lines = client.lines(over)
    expected = {wire_id(row): answer_to(prompt) for row, prompt in enumerate(asked)}
    found = answers(lines)
    assert found.items() <= expected.items()
    # This server may lose answers that it had not written down when it died, and calls the batch
    # completed all the same. To us they are lost answers, never records to send again.
    assert len(found) >= len(asked) - 10
