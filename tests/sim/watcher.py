"""Collects what may not happen while a play goes on, and what is wrong at its end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from batchinference.core.timing import Timing
from batchinference.model.codec import decode_time
from batchinference.model.run import CancelWhy, Run, RunPhase, SubmissionState
from fakes.journals import FakeJournals
from fakes.kube import FakeKube
from fakes.server import NOTICED, ProviderServer, StoredBatch
from fakes.stores import MemoryStore
from fakes.world import World
from invariants import (
    agreement_problems,
    billing_problems,
    is_terminal,
    journal_problems,
    journal_step_problems,
    object_problems,
    object_step_problems,
    provider_problems,
    rests,
)

SUBMIT_S = 20.0
"""Seconds that a create call may take from its claim on, in all plays."""

_ROUNDING = timedelta(seconds=1.0)  # the API server's times are whole seconds


def run_key_of(body: Mapping[str, Any]) -> str:
    """The run that a job says it is of."""
    return str((body.get("status") or {}).get("runKey", ""))


def _base(body: Mapping[str, Any]) -> str:
    """What twins have in common."""
    return str(body["metadata"]["name"]).removesuffix("-twin")


def _ended_before(body: Mapping[str, Any], run: Run) -> bool:
    """Whether the job says an end that is older than its run's, which went on for another one."""
    ended, last = (body.get("status") or {}).get("completionTime"), run.completion_time
    if not is_terminal(body) or ended is None or last is None:
        return False
    return decode_time(ended) < last.replace(microsecond=0)


class Watcher:
    """Hooks into the fakes. `problems` grows as things go wrong; the play stops at the first.

    Attributes:
        journaled: ids of all batches that journals knew of while their runs went on.
        staging: where the journals say that runs have staged, by run key: nobody can tell any more
            where one did whose journal is lost, and whose provider leads elsewhere now.
        were_lost: journals were deleted: what was paid for may stand nowhere for a while.
        taken: claims of output places that somebody wrote over, by their URI: since when, and
            what they were.
    """

    def __init__(
        self,
        world: World,
        kube: FakeKube,
        journals: FakeJournals,
        servers: dict[str, ProviderServer],
        store: MemoryStore,
        parked_s: float,
    ) -> None:
        self.problems: list[str] = []
        self._world = world
        self._kube = kube
        self._journals = journals
        self._servers = servers
        self._store = store
        self._parked_s = parked_s
        self._bodies: dict[str, dict[str, Any]] = {}
        self._held: set[str] = set()
        self._cancelled: dict[str, datetime] = {}
        self._results: dict[str, dict[str, bytes]] = {}
        self.journaled: set[str] = set()
        self.staging: defaultdict[str, set[str]] = defaultdict(set)
        self.were_lost = False
        self.taken: dict[str, tuple[datetime, bytes]] = {}
        kube.on_change = self._object_changed
        kube.on_let_go = self._let_go
        journals.on_write = self._journal_written
        for server in servers.values():
            server.on_commit = self._committed

    # ---------------------------------------------------------------- objects

    def _object_changed(self, body: dict[str, Any]) -> None:
        uid = body["metadata"]["uid"]
        before = self._bodies.get(uid)
        self._bodies[uid] = body
        if body["metadata"].get("finalizers"):
            self._held.add(uid)
        self.note(object_problems(body))
        if body["event"] != "DELETED":
            self.note(self._says_too_much(body, before))
            if before is not None:
                self.note(object_step_problems(before, body))

    def _says_too_much(
        self, body: Mapping[str, Any], before: Mapping[str, Any] | None
    ) -> Iterable[str]:
        """A status may be behind the journal, and never ahead of it. An end that it said already
        stands, also while the run goes on for another object.
        """
        key, meta = run_key_of(body), body["metadata"]
        run = self._journals.peek(key) if key else None
        if self.were_lost:
            return  # a status may know more than what was found again
        if key and run is None:
            yield f"{meta['name']}: its status names the run {key}, which has no journal"
        if run is None or run.owner.uid != meta["uid"]:
            return
        is_new = before is None or not is_terminal(before)
        if is_new and is_terminal(body) and not run.is_over:
            yield f"{meta['name']}: is terminal, and its journal is {run.phase.value}"
        made = {(s.index, u.ordinal, u.batch_id) for s in run.shards for u in s.made}
        for shown in body["status"].get("submissions") or () if run.shards else ():
            named = (shown["shard"], shown["ordinal"], shown.get("batchID", ""))
            if named[2] and named not in made:
                yield f"{meta['name']}: shows the submission {named}, which no journal has"

    def _let_go(self, body: dict[str, Any]) -> None:
        """Protocol 7.1: not before every live batch was cancelled or ended, or 120 s passed."""
        meta, now = body["metadata"], self._world.clock.now()
        run = self._journals.peek(run_key_of(body)) if run_key_of(body) else None
        patience = timedelta(seconds=Timing().cancel_release_s)
        late = now - decode_time(meta["deletionTimestamp"]) >= patience - _ROUNDING
        if run is None or run.owner.uid != meta["uid"] or late:
            return
        orphaned = run.cancel is not None and run.cancel.why is CancelWhy.ORPHANED
        if orphaned or self._is_shared(meta):
            return
        for shard in run.shards:
            for live in shard.live:
                batch = self._batch(live.batch_id)
                if not batch.cancels and not batch.state_at(now).is_over:
                    self.note([f"{meta['name']}: let go while {batch.id} runs uncancelled"])
            if shard.state.is_open and not run.is_over:
                self.note([f"{meta['name']}: let go with shard {shard.index} in doubt"])

    def _is_shared(self, meta: Mapping[str, Any]) -> bool:
        """Whether another object may answer for its run."""
        prefix = meta.get("generateName")
        others = [b["metadata"] for b in self._kube.jobs()]
        return prefix is not None and any(
            o.get("generateName") == prefix and o["uid"] != meta["uid"] for o in others
        )

    def _batch(self, batch_id: str) -> StoredBatch:
        return next(s.batches[batch_id] for s in self._servers.values() if batch_id in s.batches)

    # ---------------------------------------------------------------- journals

    def _journal_written(self, before: Run | None, after: Run) -> None:
        self.staging[after.key] |= {after.staging.uri} - {""}
        self.note(journal_problems(after))
        if after.phase is RunPhase.RUNNING:
            self.journaled |= {u.batch_id for shard in after.shards for u in shard.made}
        if before is not None:
            self.note(journal_step_problems(before, after))
            self.note(self._end_problems(before, after))
        self.note(self._claim_problems(before, after))
        if after.phase is RunPhase.ENDED and after.was_submitted:
            self._results.setdefault(after.key, self._results_of(after))
        deleted = after.cancel is not None and after.cancel.why is CancelWhy.DELETED
        if deleted and after.cancel is not None:
            self._cancelled.setdefault(after.tag, after.cancel.at)
        else:
            self._cancelled.pop(after.tag, None)

    def journals_lost(self) -> None:
        """Somebody deleted every journal: what they wanted is forgotten, what was paid for is not."""
        self._cancelled.clear()
        self.staging.clear()
        self.were_lost = True

    def _end_problems(self, before: Run, after: Run) -> Iterable[str]:
        final = before.phase is RunPhase.PARKED and after.phase in _FINAL
        since = before.completion_time
        if final and since is not None:
            passed = (self._world.clock.now() - since).total_seconds()
            if passed < self._parked_s:
                yield f"{after.owner.name}: a parked run was final after {passed:.0f} s"

    def _claim_problems(self, before: Run | None, after: Run) -> Iterable[str]:
        """A claim is the permission to pay: nothing may stand against it when it is written."""
        known = _claims(before) if before is not None else set()
        fresh = _open_claims(after) - known
        if not fresh:
            return
        name = f"{after.owner.name} claims {sorted(fresh)}"
        if after.cancel is not None:
            yield f"{name} although it is being cancelled"
        if after.spec.get("suspend"):
            yield f"{name} although it is suspended"
        owner = after.owner
        there = self._kube.find("BatchInferenceJob", owner.namespace, owner.name)
        is_its_own = there is not None and there["metadata"]["uid"] == owner.uid
        if is_its_own and owner.uid not in self._held:
            yield f"{name} and its object never had the finalizer"

    def _results_of(self, run: Run) -> dict[str, bytes]:
        found = self._store.under(run.output.uri)
        return {uri: data for uri, data in found.items() if not uri.endswith("/_run.json")}

    # ---------------------------------------------------------------- the provider

    def _committed(self, batch: StoredBatch) -> None:
        named = batch.submission
        if named is None:
            return
        if self.were_lost:
            return  # it was sent by a journal that has gone, or may have been
        run = next((r for r in self._journals.runs() if r.tag == named.tag), None)
        if run is None:
            self.note([f"{batch.id} was accepted for a run without a journal"])
            return
        made = run.shards[named.shard].made if named.shard < len(run.shards) else ()
        known = max([run.ordinal_floor, *(u.ordinal for u in made)])
        if named.ordinal > known:
            self.note([f"{batch.id} was accepted before its claim {named.ordinal} was written"])
        taken = self.taken.get(f"{run.output.uri}_run.json")
        longest = timedelta(seconds=SUBMIT_S) + _ROUNDING
        if taken is not None and batch.sent_at is not None and batch.sent_at - taken[0] > longest:
            self.note([f"{batch.id} was sent although the output place is another's"])

    # ---------------------------------------------------------------- from time to time

    def check(self) -> list[str]:
        """What has gone wrong so far."""
        known = set(self.problems)
        self.note([p for p in provider_problems(self._servers.values()) if p not in known])
        return self.problems

    def check_end(self, grace_s: float) -> None:
        """What is wrong once everything is quiet."""
        now = self._world.clock.now()
        resting = [b for b in self._kube.jobs() if rests(b)]
        keys, names = {run_key_of(b) for b in resting}, {_base(b) for b in resting}
        for body in self._kube.jobs():
            name = body["metadata"]["name"]
            if rests(body) or run_key_of(body) in keys - {""}:
                continue  # of twins the older one steers
            run = self._journals.peek(run_key_of(body))
            if run is None and not run_key_of(body) and _base(body) in names:
                continue  # likewise, before there is a run
            if run is not None and _ended_before(body, run):
                continue  # what it says of its end stands, whoever started the run afresh since
            if run is None and self.were_lost and is_terminal(body):
                continue  # its end stands in its status, and nothing starts without its journal
            if run is None:
                self.note([f"{name}: there is no journal of the run in its status"])
                continue
            self.note(agreement_problems(body, run))
            if not is_terminal(body):
                self.note([f"{name}: never came to an end"])
        for server in self._servers.values():
            self.note(billing_problems(server, now))
            self.note(self._uncancelled(server, grace_s))
        self.note(
            f"{run.owner.name}: its results were changed after the end"
            for run in self._journals.runs()
            if self._results.get(run.key, found := self._results_of(run)) != found
        )

    def _uncancelled(self, server: ProviderServer, grace_s: float) -> list[str]:
        found = []
        for batch in server.batches.values():
            named = batch.submission
            asked = self._cancelled.get(named.tag) if named else None
            if asked is None or batch.cancels or batch.failed_in_validation():
                continue
            if batch.id not in self.journaled and (batch.doubled or server.hides(batch)):
                continue  # nobody knew of it
            if self.were_lost and not server.habits.echoes:
                continue  # nobody can tell whose it is: never-paid-twice.md says so
            lasted = (batch.end_at - max(asked, batch.committed_at)).total_seconds()
            if lasted > grace_s:
                found.append(f"{batch.id} of a deleted job was never cancelled")
        return found

    def unreported(self, reasons: list[str]) -> list[str]:
        """Duplicates that came to light while their run was going on, and of which nobody heard."""
        found = []
        for excuse in [e for s in self._servers.values() for e in s.excused]:
            run = next((r for r in self._journals.runs() if r.tag == excuse.tag), None)
            done = run.completion_time if run else None
            seen = done is None or excuse.visible_at + NOTICED < done
            if seen and "DuplicateSubmission" not in reasons:
                found.append(f"nobody heard of a duplicate: {excuse.problem}")
        return found

    def note(self, found: Iterable[str]) -> None:
        """Remember what is wrong, each sentence once."""
        for problem in found:
            if problem not in self.problems:
                self._world.trace(f"WRONG {problem}")
                self.problems.append(problem)


_FINAL = {RunPhase.CLEANING, RunPhase.ENDED}


def _claims(run: Run) -> set[tuple[int, int]]:
    """The submissions that a journal holds, by (shard, ordinal)."""
    return {(s.index, u.ordinal) for s in run.shards for u in s.submissions}


def _open_claims(run: Run) -> set[tuple[int, int]]:
    """Those of them that may still be sent."""
    claimed = SubmissionState.CLAIMED
    return {(s.index, u.ordinal) for s in run.shards for u in s.submissions if u.state is claimed}
