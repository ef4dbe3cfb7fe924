"""The first look at a job without a run: refuse what can't be done, or make its journal.

Pure. References are resolved by the caller; nothing is claimed and nothing is paid here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from batchinference.core.keys import output_uri, run_keys, run_tag, staging_uri
from batchinference.core.locations import all_staging, check_allowed, check_apart
from batchinference.core.transitions import RunInput, step_run
from batchinference.core.view import conditions_in, is_final, shows_submission
from batchinference.errors import Stalled
from batchinference.model.batch import Limits
from batchinference.model.codec import encode
from batchinference.model.earlier import Earlier
from batchinference.model.job import BatchInferenceJob, JobSpec
from batchinference.model.provider import ProviderSpec
from batchinference.model.run import Owner, Place, ProviderPin, Run, RunPhase
from batchinference.model.status import ConditionType, Reason

_CONFIG_MAP = "configmap://"


def keys_of(job: BatchInferenceJob) -> Mapping[str, int]:
    """The run keys that the job's spec may have, with their versions; the newest first."""
    meta = job.metadata
    return run_keys(meta.namespace, meta.name, meta.generate_name, job.spec)


def key_of(job: BatchInferenceJob) -> str:
    """The run key that the job's spec asks for."""
    return next(iter(keys_of(job)))


def starts_afresh(run: Run, job: BatchInferenceJob | None) -> bool:
    """Whether the run ended with nothing accepted and this object came after that end.

    Such an end is no verdict on the object, so that a mended mistake can be tried again (protocol
    7.4); but what an object says of itself as final stays.
    """
    if job is None or not run.is_over or run.was_submitted:
        return False
    return job.metadata.uid != run.owner.uid and not is_final(job.status)


def afresh(old: Run, fresh: Run) -> Run:
    """The fresh run in place of the ended one: the same name at the provider, ordinals going on."""
    stepped = step_run(old, RunInput.RESTART)
    assert stepped is not None, "only an ended run starts afresh"
    return replace(
        fresh,
        phase=stepped.phase,
        tag=old.tag,
        installation=old.installation,
        ordinal_floor=old.ordinal_floor,
        earlier=old.earlier,
    )


def has_nothing(run: Run) -> bool:
    """Whether nothing of the run was staged yet, and nothing submitted."""
    early = run.phase in {RunPhase.ADMITTING, RunPhase.STAGING}
    return early and not run.shards and not run.was_submitted


def unadmitted(run: Run) -> Run:
    """A run that has nothing, before it looked at its input and claimed its output place."""
    return replace(
        run,
        phase=RunPhase.ADMITTING,
        output=replace(run.output, claimed=False),
        input=None,
        cursor=None,
        passes=0,
    )


def moved(run: Run, fresh: Run) -> Run:
    """A run that has nothing, from its beginning on the provider's new settings."""
    left = {*run.left, run.staging.uri} - {fresh.staging.uri}
    return replace(
        unadmitted(run),
        left=tuple(sorted(left)),
        provider=fresh.provider,
        limits=fresh.limits,
        output=fresh.output,
        staging=fresh.staging,
    )


def journaled_spec(spec: JobSpec) -> dict[str, object]:
    """The spec as the journal keeps it: without inline input and prompt texts. That there is a
    template is kept.
    """
    bare = replace(spec, prompt_template=None, input=replace(spec.input, inline=None))
    kept = dict(encode(bare))
    if spec.prompt_template is not None:
        kept["promptTemplate"] = {"missingField": spec.prompt_template.missing_field.value}
    return kept


def begin(
    job: BatchInferenceJob,
    provider: ProviderSpec,
    pin: ProviderPin,
    limits: Limits,
    *,
    installation: str,
    operator_namespace: str,
    now: datetime,
    key: str = "",
) -> Run:
    """The journal of a new run; `key` is the one that its object is known by already, if not the
    newest.

    Raises:
        Stalled: a location is not allowed, or storage is missing.
    """
    keys = keys_of(job)
    key = key if key in keys else next(iter(keys))
    staging = _staging(job.spec, provider, installation, operator_namespace, key)
    output = _output(job, key)
    _check_places(job, provider, output, staging)
    meta = job.metadata
    return Run(
        key=key,
        tag=run_tag(installation, key),
        installation=installation,
        owner=Owner(meta.namespace, meta.name, meta.uid, meta.generate_name),
        spec=journaled_spec(job.spec),
        provider=pin,
        limits=limits,
        output=Place(output),
        staging=Place(staging),
        created_at=now,
        key_version=keys[key],
        earlier=_earlier(job),
    )


def _earlier(job: BatchInferenceJob) -> Earlier:
    """What the object says of a life of the run of which there is no journal."""
    submitted = conditions_in(job.status).get(ConditionType.SUBMITTED)
    return Earlier(
        expected=shows_submission(job.status),
        accepted=submitted is not None and submitted.is_true,
        shown=_shown(job),
    )


def _shown(job: BatchInferenceJob) -> tuple[str, ...]:
    """Ids of the batches that the status shows."""
    listed = job.status.get("submissions")
    found = [entry.get("batchID") for entry in listed or () if isinstance(entry, dict)]
    return tuple(batch for batch in found if isinstance(batch, str) and batch)


def _staging(
    spec: JobSpec, provider: ProviderSpec, installation: str, namespace: str, key: str
) -> str:
    if provider.storage.s3 is not None and provider.storage.staging_uri:
        return staging_uri(provider.storage.staging_uri, installation, key)
    tiny = spec.input.s3 is None and spec.output.config_map is not None
    if tiny and provider.bedrock is None:
        return f"{_CONFIG_MAP}{namespace}/staging-{key}/"
    raise Stalled(
        Reason.STORAGE_MISSING,
        "The provider has no `spec.storage.s3` with `spec.storage.stagingURI`, which Bedrock and "
        "inputs or outputs in S3 need. Only OpenAI jobs with inline or ConfigMap input and "
        "ConfigMap output do without",
    )


def _output(job: BatchInferenceJob, key: str) -> str:
    meta, output = job.metadata, job.spec.output
    if output.s3 is None:
        assert output.config_map is not None
        return f"{_CONFIG_MAP}{meta.namespace}/{output.config_map.name}"
    return output_uri(
        output.s3.uri,
        namespace=meta.namespace,
        name=meta.name,
        run_id=job.spec.run_id,
        key=key,
    )


def _check_places(
    job: BatchInferenceJob, provider: ProviderSpec, output: str, staging: str
) -> None:
    storage = provider.storage.s3
    prefixes = storage.allowed_prefixes if storage else ()
    namespace = job.metadata.namespace
    places = []
    source = job.spec.input.s3
    if source is not None:
        check_allowed(source.uri, "spec.input.s3.uri", prefixes, namespace)
        places.append(("spec.input.s3.uri", source.uri))
    if not output.startswith(_CONFIG_MAP):
        check_allowed(output, "spec.output.s3.uri", prefixes, namespace)
        places.append(("spec.output.s3.uri", output))
    if not staging.startswith(_CONFIG_MAP):
        # Of all runs: what lies there of others is read and deleted with the same credentials.
        places.append(("the provider's spec.storage.stagingURI", all_staging(staging)))
    check_apart(places)
