"""FINISH: parts in input order, then the manifest. Every row of the input exactly once.

What is known of the rows comes merged from the shards; the row table says which rows there are and
gives the users' ids. The manifest is made of the journal and of what was written, holds no time of
its own, and so comes out the same when the task is run again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec

from batchinference.core.budget import cost_of
from batchinference.core.pricing import used
from batchinference.errors import Stalled
from batchinference.model.codec import encode, encode_time
from batchinference.model.job import OutputFormat
from batchinference.model.run import Run, SubmissionState
from batchinference.model.status import Reason
from batchinference.model.work import Finished
from batchinference.ports import ObjectStore, ResultPlace
from batchinference.records.lines import plain_lines
from batchinference.records.result import result_line
from batchinference.records.tails import ANSWERED
from batchinference.tasks import spool
from batchinference.tasks.hold import Hold, Nowhere
from batchinference.tasks.layout import Layout, layout
from batchinference.tasks.manifest import MANIFEST_SCHEMA, where_results_are
from batchinference.tasks.merge import Known, known_rows
from batchinference.tasks.parquet_parts import ParquetParts
from batchinference.tasks.parts import LineParts, Opener, Parts
from batchinference.tasks.stage import StageEnd
from batchinference.tasks.verdicts import Count, End, Verdicts, by_record, inconsistent
from batchinference.tasks.workbench import Workbench

_BRACE = 0x7B


_PARTS: dict[OutputFormat, type[LineParts]] = {
    OutputFormat.JSONL: LineParts,
    OutputFormat.PARQUET: ParquetParts,
}


def result_format(run: Run) -> OutputFormat:
    """How the run's results are written."""
    return OutputFormat((run.spec.get("output") or {}).get("format") or OutputFormat.JSONL)


def finish(run: Run, bench: Workbench, *, may_go_on: bool = False) -> Finished:
    """Write the results. `may_go_on`: the run may go on, as the manifest then says.

    Raises:
        Permanent: the rows don't add up; nothing is called finished then.
        Stalled: the output place is not ours any more, or can't be used (OutputUnavailable, also
            as Retry), and what a person must mend besides.
        Waiting, Retry.
    """
    hold = Hold(run, bench.output)
    hold.check()
    if hold.manifest is not None:
        # Readers trust it: what can't be made anew from staging, or would come out the same, is
        # not taken away.
        counts, manifest = _write(run, bench, lambda _kind, _number: Nowhere(), may_go_on=may_go_on)
        if hold.is_of(manifest):
            return _finished(run, bench.output, hold.manifest[0], counts, manifest)
    counts, manifest = _write(run, bench, hold.part, may_go_on=may_go_on)
    hold.check()
    with hold.writing():
        uri = bench.output.write_manifest(manifest)
    return _finished(run, bench.output, uri, counts, manifest)


def _finished(
    run: Run, place: ResultPlace, uri: str, counts: Counter[Count], manifest: dict[str, Any]
) -> Finished:
    bare = where_results_are(run, place, uri, has_errors=bool(manifest["errors"]))
    input_tokens, output_tokens = used(run)
    return Finished(
        replace(
            bare,
            completed=counts[Count.COMPLETED],
            failed=counts[Count.FAILED],
            expired=counts[Count.EXPIRED],
            input_tokens=input_tokens,
            output_tokens=output_tokens,
        ),
        may_go_on=not manifest["final"],
    )


def _write(
    run: Run, bench: Workbench, part: Opener, *, may_go_on: bool
) -> tuple[Counter[Count], dict[str, Any]]:
    """Every part, and the manifest that says so."""
    where = layout(run)
    end = _stage_end(bench.staging, where)
    parts = _PARTS[result_format(run)]
    results = parts(bench.output, "results", bench.part_bytes, part)
    errors = parts(bench.output, "errors", bench.part_bytes, part)
    try:
        counts = _write_rows(run, bench, where, end, results, errors)
        result_parts, error_parts = results.close(), errors.close()
    except BaseException:
        results.abort()
        errors.abort()
        raise
    manifest = _manifest(run, end, counts, result_parts, error_parts)
    return counts, {**manifest, "final": not may_go_on}


def _write_rows(
    run: Run,
    bench: Workbench,
    where: Layout,
    end: StageEnd,
    results: Parts,
    errors: Parts,
) -> Counter[Count]:
    """Every record, in order; how many came to what."""
    tag = run.tag.encode()
    counts: Counter[Count] = Counter()
    ends = _ends(run, bench, where, end)
    for record, (custom_id, count, tail) in enumerate(by_record(ends) if end.several else ends):
        line = result_line(tag, record, custom_id, tail)
        results.write(line)
        counts[count] += 1
        if count is not Count.COMPLETED:
            errors.write(line)
    return counts


def _ends(run: Run, bench: Workbench, where: Layout, end: StageEnd) -> Iterator[End]:
    """Every row of the table with what came of it."""
    verdicts = Verdicts(run)
    known = known_rows(run, bench.staging, where)
    following = next(known, None)
    row = 0
    for entry in _table(bench.staging, where, end):
        said: list[Known] = []
        while following is not None and following.row == row:
            said.append(following)
            following = next(known, None)
        if following is not None and following.row < row:
            raise inconsistent(f"row {following.row} is out of order")
        if len(said) == 1 and said[0].kind == ANSWERED and entry[0] != _BRACE:
            yield End(entry, Count.COMPLETED, said[0].text)
        else:
            yield verdicts.on(row, entry, said)
        row += 1
    if following is not None or row != end.rows:
        extra = f" and row {following.row} is more than that" if following else ""
        raise inconsistent(f"the row table has {row} rows of {end.rows}{extra}")


# ---------------------------------------------------------------- reading


def _stage_end(store: ObjectStore, where: Layout) -> StageEnd:
    data = store.get(where.stage)
    if data is None:
        raise Stalled(
            Reason.STAGING_UNAVAILABLE,
            f"{where.stage} is gone from staging; was it cleaned up by a lifecycle rule, or by "
            "hand?",
        )
    return msgspec.json.decode(data, type=StageEnd)


def _table(store: ObjectStore, where: Layout, end: StageEnd) -> Iterator[bytes]:
    if not end.rows:
        return  # an input without records has no table
    for segment in range(end.segments):
        yield from plain_lines(store.read(spool.staged(store, where.rows(segment))))


# ---------------------------------------------------------------- the manifest


def _manifest(
    run: Run,
    end: StageEnd,
    counts: Counter[Count],
    results: list[dict[str, Any]],
    errors: list[dict[str, Any]],
) -> dict[str, Any]:
    submissions = [
        {
            "shard": shard.index,
            "ordinal": submission.ordinal,
            "batchID": submission.batch_id,
            "state": submission.state.value,
            "records": shard.rows,
            **({"late": True} if submission in shard.late else {}),
        }
        for shard in run.shards
        for submission in shard.made
        if submission.state is not SubmissionState.REFUSED
    ]
    ended = [s.ended_at for shard in run.shards for s in shard.made if s.ended_at]
    times = {
        "createdAt": run.created_at,
        "startedAt": run.start_time,
        "lastBatchEndedAt": max(ended, default=None),
    }
    found = run.input
    collected = [s.collected for s in run.shards if s.collected]
    input_tokens, output_tokens = used(run)
    cost = cost_of(run)
    return {
        "schema": MANIFEST_SCHEMA,
        "runKey": run.key,
        "runTag": run.tag,
        "installation": run.installation,
        "job": {"namespace": run.owner.namespace, "name": run.owner.name},
        "model": run.spec.get("model", ""),
        "provider": {"kind": run.provider.kind, "name": run.provider.name},
        "encoder": run.encoder,
        "counts": {
            "total": end.rows - end.several,
            "completed": counts[Count.COMPLETED],
            "failed": counts[Count.FAILED],
            "expired": counts[Count.EXPIRED],
            "bad": end.bad,
            "lost": sum(c.lost for c in collected),
            "ignoredLines": sum(c.ignored for c in collected),
        },
        "usage": {
            "inputTokens": str(input_tokens),
            "outputTokens": str(output_tokens),
        },
        **({"cost": encode(cost)} if cost is not None else {}),
        "input": {
            "source": found.source if found else "",
            "objects": found.objects if found else 0,
            "bytes": found.size if found else 0,
            "fingerprint": end.fingerprint,
        },
        "format": result_format(run).value,
        "results": results,
        "errors": errors,
        "submissions": submissions,
        "times": {name: encode_time(at) for name, at in times.items() if at is not None},
    }
