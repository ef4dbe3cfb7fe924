"""Who a run is: run key, run tag, submission ids, and the paths and names made of them.

Everything here is a pure function of content, so that an object that comes back finds its run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from batchinference.model.batch import SubmissionID
from batchinference.model.job import JobSpec
from batchinference.model.run import Run, Shard

_KEY_LENGTH = 40
_KEY = re.compile(f"[0-9a-f]{{{_KEY_LENGTH}}}")
_TAG_LENGTH = 20
_INSTALLATION_LENGTH = 32


def run_keys(namespace: str, name: str, generate_name: str, spec: JobSpec) -> Mapping[str, int]:
    """The identity of the run that this spec asks for, with its version (protocol 1.1): the newest
    first, then those that earlier releases gave it. A run keeps the one that it was begun with.

    The canonical form holds the namespace, the name (or the prefix it was generated from) and the
    billable spec without defaults and empty values. Not the uid: an object that is deleted and
    created again is the same run.
    """
    named = {"generateName": generate_name} if generate_name else {"name": name}
    versions = sorted(FORMS, reverse=True)
    return {_digest(FORMS[v](namespace, named, spec))[:_KEY_LENGTH]: v for v in versions}


def _form_1(namespace: str, named: Mapping[str, str], spec: JobSpec) -> Mapping[str, Any]:
    billable = _without_empty(spec.billable(), ())
    return {"version": 1, "namespace": namespace, **named, "spec": billable}


FORMS: dict[int, Callable[[str, Mapping[str, str], JobSpec], Mapping[str, Any]]] = {1: _form_1}
"""The canonical form behind the keys of each version. A form that was released is never changed: a
release that needs another one adds it, and `model.run.KEY_VERSION` names the newest.
"""


def is_run_key(text: object) -> TypeGuard[str]:
    """Whether a text that anybody may have written has the form of a run key."""
    return isinstance(text, str) and _KEY.fullmatch(text) is not None


def installation_id(cluster: str, namespace: str) -> str:
    """Whose a run is, in claims, tags and staging paths (protocol 1.2).

    Args:
        cluster: uid of the namespace kube-system.
        namespace: the operator's own, where its journals are. A second operator of the cluster
            that keeps journals elsewhere knows nothing of ours, so it must not take our claims for
            its own.
    """
    return _digest([cluster, namespace])[:_INSTALLATION_LENGTH]


def run_tag(installation: str, key: str) -> str:
    """The run's name at the provider: the installation that first claimed it, and its key."""
    return _digest([installation, key])[:_TAG_LENGTH]


def submission_id(run: Run, shard: Shard, ordinal: int) -> SubmissionID:
    """What the batch of that submission carries."""
    return SubmissionID(
        tag=run.tag, shard=shard.index, ordinal=ordinal, content_hash=shard.sha256[:12]
    )


def next_ordinal(run: Run, shard: Shard) -> int:
    """The ordinal of the shard's next submission; ordinals never restart for a key."""
    return max([run.ordinal_floor, run.ordinal_found, *(s.ordinal for s in shard.made)]) + 1


def journal_name(key: str) -> str:
    """The name of a run's journal in the operator's namespace."""
    return f"run-{key}"


def staging_uri(base: str, installation: str, key: str) -> str:
    """Where a run's staging lies under its provider's staging place (protocol 3.4)."""
    return f"{base.rstrip('/')}/{installation}/{key}/"


def output_uri(template: str, *, namespace: str, name: str, run_id: str, key: str) -> str:
    """The output place with its variables replaced, in one go: a value is no variable."""
    values = {"namespace": namespace, "name": name, "runID": run_id, "runKey": key}
    return _VARIABLE.sub(lambda found: values[found[1]], template)


_VARIABLE = re.compile(r"\$\{(namespace|name|runID|runKey)\}")

_FREE = {
    ("parameters", "extra"),
    ("parameters", "responseFormat", "jsonSchema", "schema"),
}
"""Where users write JSON of their own: there an empty value means something."""


def _without_empty(value: Any, path: tuple[str, ...]) -> Any:
    """Objects without members that say nothing. Lists keep theirs: position has meaning."""
    if not isinstance(value, dict) or path in _FREE:
        return value
    kept = {k: _without_empty(v, (*path, k)) for k, v in value.items()}
    return {k: v for k, v in kept.items() if v not in (None, "", {}, [])}


def _digest(form: Any) -> str:
    text = json.dumps(form, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
