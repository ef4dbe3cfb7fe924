"""Collects what may not happen while a play goes on, and what is wrong at its end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from batchinference.model.run import CancelWhy, Run, RunPhase
from fakes.journals import FakeJournals
from fakes.kube import FakeKube
from fakes.server import NOTICED, ProviderServer
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


def run_key_of(body: Mapping[str, Any]) -> str:
    """The run that a job says it is of."""
    return str((body.get("status") or {}).get("runKey", ""))


class Watcher:
    """Hooks into the fakes. `problems` grows as things go wrong; the play stops at the first.

    Attributes:
        journaled: ids of all batches that journals knew of while their runs went on.
        staging: where the journals say that runs have staged, by run key: nobody can tell any more
            where one did whose journal is lost, and whose provider leads elsewhere now.
    """

    def __init__(
        self,
        world: World,
        kube: FakeKube,
        journals: FakeJournals,
        servers: dict[str, ProviderServer],
    ) -> None:
        self.problems: list[str] = []
        self._world = world
        self._kube = kube
        self._journals = journals
        self._servers = servers
        self._bodies: dict[str, dict[str, Any]] = {}
        self._cancelled: dict[str, datetime] = {}
        self.journaled: set[str] = set()
        self.staging: defaultdict[str, set[str]] = defaultdict(set)
        self._were_lost = False
        kube.on_change = self._object_changed
        journals.on_write = self._journal_written

    def _object_changed(self, body: dict[str, Any]) -> None:
        uid = body["metadata"]["uid"]
        before = self._bodies.get(uid)
        self._bodies[uid] = body
        self._note(object_problems(body))
        if before is not None and body["event"] != "DELETED":
            self._note(object_step_problems(before, body))

    def _journal_written(self, before: Run | None, after: Run) -> None:
        self.staging[after.key] |= {after.staging.uri} - {""}
        self._note(journal_problems(after))
        if after.phase is RunPhase.RUNNING:
            self.journaled |= {u.batch_id for shard in after.shards for u in shard.made}
        if before is not None:
            self._note(journal_step_problems(before, after))
        deleted = after.cancel is not None and after.cancel.why is CancelWhy.DELETED
        if deleted and after.cancel is not None:
            self._cancelled.setdefault(after.tag, after.cancel.at)
        else:
            self._cancelled.pop(after.tag, None)

    def journals_lost(self) -> None:
        """Somebody deleted every journal: what they wanted is forgotten, what was paid for is not."""
        self._cancelled.clear()
        self.staging.clear()
        self._were_lost = True

    def check(self) -> list[str]:
        """What has gone wrong so far."""
        known = set(self.problems)
        self._note([p for p in provider_problems(self._servers.values()) if p not in known])
        return self.problems

    def check_end(self, grace_s: float) -> None:
        """What is wrong once everything is quiet."""
        now = self._world.clock.now()
        resting = {run_key_of(b) for b in self._kube.jobs() if rests(b)}
        for body in self._kube.jobs():
            name = body["metadata"]["name"]
            if rests(body) or run_key_of(body) in resting - {""}:
                continue  # of twins the older one steers
            run = self._journals.peek(run_key_of(body))
            if run is None and self._were_lost and is_terminal(body):
                continue  # its end stands in its status, and nothing starts without its journal
            if run is None:
                self._note([f"{name}: there is no journal of the run in its status"])
                continue
            self._note(agreement_problems(body, run))
            if not is_terminal(body):
                self._note([f"{name}: never came to an end"])
        for server in self._servers.values():
            self._note(billing_problems(server, now))
            self._note(self._uncancelled(server, grace_s))

    def _uncancelled(self, server: ProviderServer, grace_s: float) -> list[str]:
        found = []
        for batch in server.batches.values():
            named = batch.submission
            asked = self._cancelled.get(named.tag) if named else None
            if asked is None or batch.cancels or batch.failed_in_validation():
                continue
            if batch.id not in self.journaled and (batch.doubled or server.hides(batch)):
                continue  # nobody knew of it
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

    def _note(self, found: list[str]) -> None:
        for problem in found:
            if problem not in self.problems:
                self._world.trace(f"WRONG {problem}")
                self.problems.append(problem)
