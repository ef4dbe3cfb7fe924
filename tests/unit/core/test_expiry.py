"""When the objects of finished runs go, and who would create them again."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from batchinference.core.expiry import expires_at, manager_of, recreation_warning
from batchinference.model.codec import encode_time
from batchinference.model.metadata import ObjectMeta
from builders import START, job
from unit.core.given import seen

CREATED = START
ENDED = START + timedelta(hours=3)


def finished(ttl=60, ended=ENDED, created=CREATED, **metadata):
    status = {"observedGeneration": 1, "state": "Succeeded", "conditions": []}
    if ended is not None:
        status["completionTime"] = encode_time(ended)
    builder = job().with_spec(ttlSecondsAfterFinished=ttl).with_status(status)
    made = {"creationTimestamp": encode_time(created), **metadata}
    return seen(replace(builder, metadata=made))


@pytest.mark.parametrize(
    ("body", "expected", "reason"),
    [
        (finished(), ENDED + timedelta(seconds=60), "after its end"),
        (finished(ttl=0), ENDED, "at once"),
        (
            finished(created=ENDED + timedelta(days=1)),
            ENDED + timedelta(days=1, seconds=60),
            "an object that found a finished run is there for as long as any other",
        ),
        (finished(ended=None), None, "it goes on"),
        (seen(job()), None, "it has none"),
        (
            replace(finished(), status={"completionTime": "yesterday"}),
            None,
            "a status that is none of ours says nothing",
        ),
    ],
)
def test_when_an_object_goes(body, expected, reason) -> None:
    assert expires_at(body) == expected, reason


@pytest.mark.parametrize(
    ("meta", "tool"),
    [
        (ObjectMeta(annotations={"argocd.argoproj.io/tracking-id": "app:g/k:ml/a"}), "Argo CD"),
        (ObjectMeta(labels={"argocd.argoproj.io/instance": "app"}), "Argo CD"),
        (ObjectMeta(labels={"kustomize.toolkit.fluxcd.io/name": "app"}), "Flux"),
        (ObjectMeta(labels={"helm.toolkit.fluxcd.io/name": "app"}), "Flux"),
        (ObjectMeta(annotations={"meta.helm.sh/release-name": "app"}), "Helm"),
        (ObjectMeta(labels={"app.kubernetes.io/instance": "app"}), ""),
        (ObjectMeta(), ""),
    ],
)
def test_who_would_create_it_again(meta, tool) -> None:
    assert manager_of(meta) == tool


def test_the_warning_is_for_objects_that_would_come_back() -> None:
    helm = {"annotations": {"meta.helm.sh/release-name": "app"}}
    assert "Helm" in recreation_warning(finished(**helm))
    assert recreation_warning(finished()) == ""
    assert recreation_warning(replace(seen(job()), metadata=finished(**helm).metadata)) == ""
