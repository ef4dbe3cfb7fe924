"""`ports.BatchProvider` over boto3: create, look up, follow and stop model invocation jobs.

Owns the calls and their bounds in time; they block, so they run in threads of their own. What an
answer means is in `faults` and `view`. It must not know shards' bytes: those are in `data`.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from botocore import exceptions as aws

from batchinference.adapters import aws as cloud
from batchinference.adapters import network
from batchinference.adapters.bedrock import request as requests
from batchinference.adapters.bedrock.faults import fault, is_absent, is_over, outcome
from batchinference.adapters.bedrock.names import INPUT_FILE
from batchinference.adapters.bedrock.request import WHERE
from batchinference.adapters.bedrock.view import view
from batchinference.errors import InvalidObject, Retry, Stalled
from batchinference.model.batch import (
    TOO_LATE,
    Accepted,
    Account,
    BatchView,
    CancelOutcome,
    OutcomeUnknown,
    Page,
    SubmissionID,
    SubmitOutcome,
    Traits,
)
from batchinference.model.codec import decode
from batchinference.model.provider import ProviderSpec
from batchinference.model.run import Run
from batchinference.model.status import Reason
from batchinference.ports import ObjectStore

if TYPE_CHECKING:
    from mypy_boto3_bedrock.client import BedrockClient

T = TypeVar("T")

THREADS = 8
RESEND_WINDOW_S = 300.0
"""How long AWS is trusted to know a request token; it does not say how long it does."""
PAGE_SIZE = 500
SUBMIT_S = 90.0
"""Seconds after which the outcome of a create call is unknown."""

_CALL = (aws.ClientError, aws.BotoCoreError)


class BedrockProvider:
    """See `ports.BatchProvider`. A batch's id is the job's ARN."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        secrets: Mapping[str, Mapping[str, str]],
        store: ObjectStore,
        *,
        own_identity: bool = False,
        submit_timeout_s: float = SUBMIT_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Make clients; no call is made yet.

        Args:
            settings: the provider's spec as the API server has it.
            secrets: resolved Secrets by role; `bedrock` is read.
            store: where the run's staging is, for looking at inputs and deleting them.
            own_identity: whether the operator's own identity may be used where no Secret is named.
            submit_timeout_s: seconds after which the outcome of a create call is unknown.
            sleep: how to wait between the tries of a call.

        Raises:
            Stalled: the settings or the Secrets can't be used.
        """
        self.traits = Traits(resend_window_s=RESEND_WINDOW_S, keeps_names=True)
        spec = _spec(settings)
        bedrock = spec.bedrock
        assert bedrock is not None
        keys = cloud.named_or_own(
            bedrock.credentials_secret_ref is not None,
            secrets.get("bedrock"),
            field_path=f"{WHERE}.credentialsSecretRef",
            own_identity=own_identity,
        )
        trusted = network.checked(bedrock.ca_bundle, f"{WHERE}.caBundle")
        session = cloud.session(keys, bedrock.region, sleep)
        sts = cloud.sts_endpoint(bedrock.endpoint_url)
        if bedrock.assume_role_arn:
            session = cloud.assume_role(
                session,
                role_arn=bedrock.assume_role_arn,
                external_id=bedrock.external_id,
                sts_endpoint=sts,
                ca_bundle=trusted,
                sleep=sleep,
            )
        self._client: BedrockClient = cloud.client(
            session, "bedrock", bedrock.endpoint_url, trusted, connections=2 * THREADS
        )
        self._sending = threading.local()
        self._client.meta.events.register(
            "before-send.bedrock.CreateModelInvocationJob", self._in_time
        )
        self._sts: Any = cloud.client(session, "sts", sts, trusted, connections=THREADS)
        self._region = bedrock.region
        self._told_by = urlsplit(sts).netloc
        self._store = store
        self._submit_timeout_s = submit_timeout_s
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="bedrock")
        # Its own: a create call that waits behind slow listings would run out of its time unsent.
        self._create_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="bedrock-create")

    async def check(self) -> Account:
        """See `ports.BatchProvider.check`: who we are, and the listing that polling lives on."""
        doing = "ask AWS whose credentials these are"
        caller = await self._call(doing, self._sts.get_caller_identity)
        await self._call(
            "list model invocation jobs",
            lambda: self._client.list_model_invocation_jobs(maxResults=1),
        )
        number = str(caller["Account"])
        # Only AWS's word on whose credentials these are is AWS's: another endpoint names any
        # account, and whoever set it up would take that one's places.
        scope = f"{self._told_by}/" if self._told_by else ""
        return Account(
            f"bedrock/{scope}{number}/{self._region}", {"account": number, "region": self._region}
        )

    def create_request(
        self, run: Run, submission: SubmissionID, input_ref: str
    ) -> Mapping[str, Any]:
        """See `ports.BatchProvider.create_request`. Settings are those that the run has pinned."""
        return requests.create_request(run, submission, input_ref)

    async def submit(
        self, request: Mapping[str, Any], may_send: Callable[[], bool]
    ) -> SubmitOutcome:
        """See `ports.BatchProvider.submit`: one call, never a second one."""

        def create() -> Mapping[str, Any]:
            self._sending.may_send = may_send
            return self._client.create_model_invocation_job(**request)

        try:
            async with asyncio.timeout(self._submit_timeout_s):
                answer = await asyncio.get_running_loop().run_in_executor(
                    self._create_threads, create
                )
        except network.TooLate:
            return TOO_LATE
        except (*_CALL, OSError) as error:
            return outcome(error)
        arn = answer.get("jobArn")
        if not arn:
            return OutcomeUnknown("The answer to the create call names no job.")
        return Accepted(view({**request, "jobArn": arn, "status": "Submitted"}))

    def _in_time(self, **_event: Any) -> None:
        """A thread that renewed credentials for minutes must not send what was given up."""
        if not self._sending.may_send():
            raise network.TooLate

    async def page(self, cursor: str | None, since: datetime | None) -> Page:
        """See `ports.BatchProvider.page`. The cursor holds AWS's token and the question it is of.

        Raises:
            Stalled: credentials or access.
            Retry: passing, or AWS gives the same token again.
        """
        query: dict[str, Any] = {
            "sortBy": "CreationTime",
            "sortOrder": "Descending",
            "maxResults": PAGE_SIZE,
        }
        token, asked = json.loads(cursor) if cursor else ("", since and since.isoformat())
        if asked:
            query["submitTimeAfter"] = datetime.fromisoformat(asked)
        if token:
            query["nextToken"] = token
        answer = await self._call(
            "list model invocation jobs",
            lambda: self._client.list_model_invocation_jobs(**query),
        )
        batches = tuple(view(job) for job in answer.get("invocationJobSummaries", ()))
        following = answer.get("nextToken")
        if following and following == token:
            raise Retry(Reason.PROVIDER_UNAVAILABLE, "AWS repeats a page of the listing of jobs.")
        return Page(batches, json.dumps([following, asked]) if following else None)

    async def get(self, batch_id: str) -> BatchView | None:
        """See `ports.BatchProvider.get`."""
        try:
            found = await self._in_thread(
                lambda: self._client.get_model_invocation_job(jobIdentifier=batch_id)
            )
        except (*_CALL, OSError) as error:
            if is_absent(error):
                return None
            raise fault(error, f"read the job {batch_id}") from error
        return view(found)

    async def cancel(self, batch_id: str) -> CancelOutcome:
        """See `ports.BatchProvider.cancel`."""
        try:
            await self._in_thread(
                lambda: self._client.stop_model_invocation_job(jobIdentifier=batch_id)
            )
        except (*_CALL, OSError) as error:
            if is_absent(error):
                return CancelOutcome.NOT_FOUND
            if is_over(error):
                return CancelOutcome.ALREADY_OVER
            raise fault(error, f"stop the job {batch_id}") from error
        return CancelOutcome.ACCEPTED

    async def input_readable(self, input_ref: str) -> bool:
        """See `ports.BatchProvider.input_readable`."""
        return await self._in_thread(lambda: self._store.head(input_ref)) is not None

    async def delete_input(self, input_ref: str) -> None:
        """See `ports.BatchProvider.delete_input`: the folder goes, which no other ordinal uses."""
        folder = input_ref.removesuffix(INPUT_FILE)
        await self._in_thread(lambda: self._store.delete_prefix(folder))

    async def close(self) -> None:
        """See `ports.BatchProvider.close`. Calls under way end by their own time limits."""
        for threads in (self._threads, self._create_threads):
            threads.shutdown(wait=False, cancel_futures=True)
        for client in (self._client, self._sts):
            client.close()

    # ------------------------------------------------------------ calls

    async def _call(self, doing: str, call: Callable[[], Any]) -> Any:
        try:
            return await self._in_thread(call)
        except (*_CALL, OSError) as error:
            raise fault(error, doing) from error

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def _spec(settings: Mapping[str, Any]) -> ProviderSpec:
    try:
        spec = decode(ProviderSpec, settings, "spec", ignore_unknown=True)
    except InvalidObject as error:
        raise Stalled(Reason.INVALID_SPEC, str(error)) from error
    if spec.bedrock is None:
        raise Stalled(Reason.INVALID_SPEC, f"{WHERE}: must be set.")
    return spec
