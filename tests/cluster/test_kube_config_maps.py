"""Data in ConfigMaps against the real API server: staging, inputs and results of tiny runs."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest

from batchinference.adapters.kube import config_map_store
from batchinference.adapters.kube.blocking import ConfigMaps
from batchinference.adapters.kube.client import KubeClient
from batchinference.adapters.kube.config_map_input import ConfigMapInput
from batchinference.adapters.kube.config_map_place import ConfigMapPlace
from batchinference.adapters.kube.config_map_store import ConfigMapStore
from batchinference.adapters.kube.connection import KubeConnection
from batchinference.adapters.kube.names import CLAIM_ANNOTATION, MANIFEST_ANNOTATION
from batchinference.errors import Permanent, Retry, Stalled
from batchinference.model.work import Holder
from batchinference.ports import Claim, SourceChanged
from control_plane import ControlPlane


async def connection_of(control_plane: ControlPlane) -> KubeConnection:
    client = await KubeClient.connect(str(control_plane.kubeconfig))
    try:
        return await client.connection()
    finally:
        await client.close()


@pytest.fixture
def config_maps(control_plane: ControlPlane) -> Iterator[ConfigMaps]:
    with ConfigMaps(asyncio.run(connection_of(control_plane))) as opened:
        yield opened


def made_by_hand(config_maps: ConfigMaps, namespace: str, name: str, **more: Any) -> None:
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, **more}
    assert config_maps.create(namespace, manifest)


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that do not get smaller."""
    return random.Random(seed).randbytes(size)


class TestStore:
    @pytest.fixture
    def store(self, config_maps: ConfigMaps) -> ConfigMapStore:
        return ConfigMapStore(config_maps)

    @pytest.fixture
    def base(self, namespace: str) -> str:
        return f"configmap://{namespace}/staging-0123/"

    def test_an_object_comes_back_with_its_size_and_etag(
        self, store: ConfigMapStore, base: str
    ) -> None:
        assert store.head(base + "rows/0") is None
        assert store.get(base + "rows/0") is None
        assert store.put(base + "rows/0", b"one\n")
        info = store.head(base + "rows/0")
        assert info is not None
        assert (info.uri, info.size) == (base + "rows/0", 4)
        assert store.get(base + "rows/0") == b"one\n"
        assert b"".join(store.read(info, 2)) == b"e\n"

    def test_an_object_larger_than_a_config_map_is_split_and_joined(
        self, store: ConfigMapStore, base: str, config_maps: ConfigMaps, namespace: str
    ) -> None:
        data = noise(3_000_000)
        writer = store.writer(base + "large")
        for begin in range(0, len(data), 100_000):
            writer.write(data[begin : begin + 100_000])
        assert store.head(base + "large") is None  # nothing to see before commit
        info = writer.commit()
        assert info == store.head(base + "large")
        assert b"".join(store.read(info)) == data
        assert b"".join(store.read(info, 2_999_990)) == data[2_999_990:]
        names = [
            m["name"] for m in config_maps.list_metadata(namespace, "batchinference.dev/staging")
        ]
        assert len(names) == 4

    def test_overwriting_shows_the_new_object_and_leaves_nothing_of_the_old(
        self, store: ConfigMapStore, base: str, config_maps: ConfigMaps, namespace: str
    ) -> None:
        store.put(base + "x", noise(2_000_000))
        old = store.head(base + "x")
        store.put(base + "x", b"new")
        assert store.get(base + "x") == b"new"
        assert old is not None
        with pytest.raises(SourceChanged):
            b"".join(store.read(old))
        left = list(config_maps.list_metadata(namespace, "batchinference.dev/staging"))
        assert len(left) == 1

    def test_only_the_first_of_two_conditional_puts_wins(
        self, store: ConfigMapStore, base: str
    ) -> None:
        assert store.put(base + "x", b"first", only_if_absent=True)
        assert not store.put(base + "x", b"second", only_if_absent=True)
        assert store.get(base + "x") == b"first"

    def test_an_aborted_write_leaves_nothing(
        self, store: ConfigMapStore, base: str, config_maps: ConfigMaps, namespace: str
    ) -> None:
        writer = store.writer(base + "x")
        writer.write(noise(3_000_000))
        writer.abort()
        assert not list(config_maps.list_metadata(namespace, "batchinference.dev/staging"))

    def test_a_listing_is_in_order_of_paths_and_knows_prefixes(
        self, store: ConfigMapStore, base: str, namespace: str
    ) -> None:
        for path in ("b/2", "a", "b/1", "c"):
            store.put(base + path, path.encode())
        store.put(f"configmap://{namespace}/staging-other/b/3", b"other")
        assert [info.uri for info in store.list(base)] == [
            base + p for p in ("a", "b/1", "b/2", "c")
        ]
        assert [info.uri for info in store.list(base + "b/")] == [base + "b/1", base + "b/2"]

    def test_a_copy_is_the_same_and_a_deleted_object_is_gone(
        self, store: ConfigMapStore, base: str
    ) -> None:
        store.put(base + "x", b"data")
        store.copy(base + "x", base + "y")
        store.delete(base + "x")
        store.delete(base + "x")
        assert store.get(base + "x") is None
        assert store.get(base + "y") == b"data"

    def test_emptying_a_store_takes_along_what_a_crash_left_behind(
        self, store: ConfigMapStore, base: str, config_maps: ConfigMaps, namespace: str
    ) -> None:
        store.writer(base + "half").write(noise(3_000_000))  # dropped, as a kill would
        store.put(base + "whole", b"data")
        store.put(f"configmap://{namespace}/staging-other/x", b"other")
        store.delete_prefix(base)
        left = list(config_maps.list_metadata(namespace, "batchinference.dev/staging"))
        assert [m["labels"]["batchinference.dev/staging"] for m in left] == ["staging-other"]

    def test_a_large_object_is_not_read_whole_by_mistake(
        self, store: ConfigMapStore, base: str
    ) -> None:
        store.put(base + "x", b"x" * 100)
        with pytest.raises(Permanent, match="100 bytes"):
            store.get(base + "x", limit=99)

    def test_what_compresses_well_is_read_in_bounded_chunks(
        self, store: ConfigMapStore, base: str
    ) -> None:
        store.put(base + "x", b"a" * 5_000_000)
        info = store.head(base + "x")
        assert info is not None
        chunks = [len(chunk) for chunk in store.read(info)]
        assert sum(chunks) == 5_000_000
        assert max(chunks) <= config_map_store._CHUNK

    def test_a_broken_uri_is_refused(self, store: ConfigMapStore) -> None:
        with pytest.raises(Permanent, match="configmap://namespace/name"):
            store.head("configmap://only-a-namespace")


class TestInput:
    def test_a_key_is_an_object(self, config_maps: ConfigMaps, namespace: str) -> None:
        made_by_hand(config_maps, namespace, "rows", data={"in.jsonl": '{"ü": 1}\n'})
        source = ConfigMapInput(config_maps)
        uri = f"configmap://{namespace}/rows/in.jsonl"
        info = source.head(uri)
        assert info is not None
        assert info.size == 10
        assert b"".join(source.read(info)) == '{"ü": 1}\n'.encode()
        assert [found.uri for found in source.list(uri)] == [uri]
        assert source.head(f"configmap://{namespace}/rows/other") is None
        assert source.head(f"configmap://{namespace}/other/in.jsonl") is None

    def test_binary_keys_are_read_too(self, config_maps: ConfigMaps, namespace: str) -> None:
        made_by_hand(config_maps, namespace, "rows", binaryData={"in.jsonl.gz": "H4sI"})
        assert ConfigMapInput(config_maps).get(f"configmap://{namespace}/rows/in.jsonl.gz") == (
            b"\x1f\x8b\x08"
        )

    def test_a_label_is_no_change_and_another_content_is(
        self, config_maps: ConfigMaps, namespace: str, kubectl: Any
    ) -> None:
        made_by_hand(config_maps, namespace, "rows", data={"in": "1\n"})
        source = ConfigMapInput(config_maps)
        info = source.head(f"configmap://{namespace}/rows/in")
        assert info is not None
        kubectl("label", "configmap", "rows", "team=ml", "-n", namespace)
        assert b"".join(source.read(info)) == b"1\n"
        kubectl("patch", "configmap", "rows", "-n", namespace, "-p", '{"data":{"in":"2\\n"}}')
        with pytest.raises(SourceChanged):
            b"".join(source.read(info))

    def test_it_is_never_written(self, config_maps: ConfigMaps, namespace: str) -> None:
        uri = f"configmap://{namespace}/rows/in"
        source = ConfigMapInput(config_maps)
        for write in (
            lambda: source.put(uri, b""),
            lambda: source.writer(uri),
            lambda: source.delete(uri),
            lambda: source.delete_prefix(uri),
            lambda: source.copy(uri, uri),
        ):
            with pytest.raises(Permanent, match="never written"):
                write()


OURS = Claim("key-1", "tag-1", "cluster-1")
THEIRS = Claim("key-2", "tag-2", "cluster-1")


class TestPlace:
    @pytest.fixture
    def uri(self, namespace: str) -> str:
        return f"configmap://{namespace}/answers"

    @pytest.fixture
    def place(self, config_maps: ConfigMaps, uri: str) -> ConfigMapPlace:
        return ConfigMapPlace(config_maps, uri, OURS, "ml/triage")

    def read(self, config_maps: ConfigMaps, namespace: str, key: str) -> str:
        """As documented for readers: the key of `answers`, `answers-1` ... joined."""
        text, number, name = "", 0, "answers"
        while found := config_maps.get(namespace, name):
            assert len(json.dumps(found.get("data", {}), ensure_ascii=False).encode()) < 1 << 20
            text += found.get("data", {}).get(key, "")
            number += 1
            name = f"answers-{number}"
        return text

    def finish(self, place: ConfigMapPlace, results: bytes, errors: bytes = b"") -> str:
        for kind, data in (("results", results), ("errors", errors)):
            part = place.part(kind, 0)
            for begin in range(0, len(data), 70_000):
                part.write(data[begin : begin + 70_000])
            part.commit()
        return place.write_manifest({"runKey": "key-1"})

    def test_a_free_place_is_claimed_and_claimed_again(
        self, place: ConfigMapPlace, config_maps: ConfigMaps, namespace: str
    ) -> None:
        assert not place.holds(OURS)
        assert place.claim(OURS) is None
        assert place.claim(OURS) is None
        assert place.holds(OURS)
        assert not place.holds(THEIRS)
        found = config_maps.get(namespace, "answers")
        assert found is not None
        assert "ownerReferences" not in found["metadata"]
        assert found["metadata"]["annotations"]["batchinference.dev/job"] == "ml/triage"

    def test_a_manifest_is_read_back(self, place: ConfigMapPlace) -> None:
        assert place.manifest() is None
        assert place.claim(OURS) is None
        assert place.manifest() is None
        where = self.finish(place, b"{}\n")
        found = place.manifest()
        assert found is not None
        assert (found[0], json.loads(found[1])) == (where, {"runKey": "key-1"})

    def test_another_runs_claim_is_told_with_what_it_left(
        self, place: ConfigMapPlace, config_maps: ConfigMaps, uri: str
    ) -> None:
        theirs = ConfigMapPlace(config_maps, uri, THEIRS, "ml/other")
        theirs.claim(THEIRS)
        holder = place.claim(OURS)
        assert holder is not None
        assert (holder.run_key, holder.run_tag, holder.finished) == ("key-2", "tag-2", False)
        assert holder.description == "ml/other"
        self.finish(theirs, b"{}\n")
        holder = place.claim(OURS)
        assert holder is not None
        assert holder.finished

    def test_a_config_map_of_a_user_is_never_touched(
        self, place: ConfigMapPlace, config_maps: ConfigMaps, namespace: str
    ) -> None:
        made_by_hand(config_maps, namespace, "answers", data={"theirs": "1"})
        before = config_maps.get(namespace, "answers")
        holder = place.claim(OURS)
        assert holder is not None
        assert holder.run_key == ""
        assert "was not made by this operator" in holder.description
        place.release(OURS)
        with pytest.raises(Stalled) as conflict:
            place.part("results", 0)
        assert conflict.value.reason == "OutputConflict"
        assert config_maps.get(namespace, "answers") == before

    def test_results_are_whole_and_readable_with_kubectl(
        self, place: ConfigMapPlace, namespace: str, kubectl: Any
    ) -> None:
        place.claim(OURS)
        uri = self.finish(place, '{"a": "ü"}\n'.encode(), b'{"e": 1}\n')
        assert uri == f"configmap://{namespace}/answers/manifest.json"
        shown = json.loads(kubectl("get", "cm", "answers", "-n", namespace, "-o", "json").stdout)
        assert shown["data"]["results.jsonl"] == '{"a": "ü"}\n'
        assert shown["data"]["errors.jsonl"] == '{"e": 1}\n'
        assert json.loads(shown["data"]["manifest.json"]) == {"runKey": "key-1"}
        holder = place.claim(OURS)
        assert holder is not None
        assert (holder.run_key, holder.finished) == ("key-1", True)
        assert shown["metadata"]["annotations"]["batchinference.dev/manifest"]

    def test_results_go_on_in_the_next_config_map_at_line_ends(
        self, place: ConfigMapPlace, config_maps: ConfigMaps, namespace: str
    ) -> None:
        place.claim(OURS)
        lines = [
            json.dumps({"row": n, "text": "ä" * 2_000}, ensure_ascii=False) for n in range(490)
        ]
        results = "".join(line + "\n" for line in lines)
        errors = "".join(line + "\n" for line in lines[:150])
        self.finish(place, results.encode(), errors.encode())
        assert self.read(config_maps, namespace, "results.jsonl") == results
        assert self.read(config_maps, namespace, "errors.jsonl") == errors
        second = config_maps.get(namespace, "answers-1")
        assert second is not None
        assert second["data"]["results.jsonl"].startswith('{"row"')

    def test_a_line_above_any_limit_is_cut_between_characters(
        self, place: ConfigMapPlace, config_maps: ConfigMaps, namespace: str
    ) -> None:
        place.claim(OURS)
        line = "a" + "€" * 500_000 + "\n"
        self.finish(place, line.encode())
        assert self.read(config_maps, namespace, "results.jsonl") == line

    def test_finishing_again_replaces_everything_and_hides_it_meanwhile(
        self, place: ConfigMapPlace, config_maps: ConfigMaps, uri: str, namespace: str
    ) -> None:
        place.claim(OURS)
        self.finish(place, b"x" * 1_500_000 + b"\n", b"error\n")
        assert config_maps.get(namespace, "answers-2")
        again = ConfigMapPlace(config_maps, uri, OURS, "ml/triage")
        part = again.part("results", 0)
        hidden = config_maps.get(namespace, "answers")
        assert hidden is not None
        assert "batchinference.dev/manifest" not in hidden["metadata"]["annotations"]
        part.write(b"new\n")
        part.commit()
        again.write_manifest({"runKey": "key-1"})
        assert self.read(config_maps, namespace, "results.jsonl") == "new\n"
        assert self.read(config_maps, namespace, "errors.jsonl") == ""
        assert config_maps.get(namespace, "answers-1") is None

    def test_a_continuation_that_is_a_users_own_stops_the_results(
        self, place: ConfigMapPlace, config_maps: ConfigMaps, namespace: str
    ) -> None:
        made_by_hand(config_maps, namespace, "answers-1", data={"theirs": "1"})
        place.claim(OURS)
        with pytest.raises(Stalled, match="answers-1 is in the way"):
            self.finish(place, b"x" * 700_000 + b"\n")
        found = config_maps.get(namespace, "answers-1")
        assert found is not None
        assert found["data"] == {"theirs": "1"}

    def test_more_records_than_allowed_are_refused(self, place: ConfigMapPlace) -> None:
        place.claim(OURS)
        part = place.part("results", 0)
        part.write(b"{}\n" * 500)
        with pytest.raises(Permanent, match="500 records"):
            part.write(b"{}\n")

    def test_a_released_claim_is_gone_and_a_finished_one_stays(
        self, place: ConfigMapPlace, config_maps: ConfigMaps, namespace: str
    ) -> None:
        place.claim(OURS)
        place.release(THEIRS)
        assert place.holds(OURS)
        place.release(OURS)
        assert config_maps.get(namespace, "answers") is None
        place.claim(OURS)
        self.finish(place, b"{}\n")
        place.release(OURS)
        assert place.holds(OURS)

    def test_a_finished_place_is_taken_over_whole(
        self, place: ConfigMapPlace, config_maps: ConfigMaps, uri: str, namespace: str
    ) -> None:
        place.claim(OURS)
        self.finish(place, b"x" * 700_000 + b"\n", b"{}\n")
        theirs = ConfigMapPlace(config_maps, uri, THEIRS, "ml/other")
        holder = theirs.claim(THEIRS)
        assert holder is not None
        assert not theirs.replace(THEIRS, Holder("key-3", "tag-3", "cluster-1"))
        assert place.holds(OURS)
        assert theirs.replace(THEIRS, holder)
        assert theirs.holds(THEIRS)
        found = config_maps.get(namespace, "answers")
        assert found is not None
        assert "data" not in found
        assert config_maps.get(namespace, "answers-1") is None
        assert holder.final
        assert not json.loads(found["metadata"]["annotations"][CLAIM_ANNOTATION])["replaces"]

    def test_a_takeover_that_was_cut_short_leaves_nothing_readable_and_is_finished_later(
        self,
        place: ConfigMapPlace,
        config_maps: ConfigMaps,
        uri: str,
        namespace: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        place.claim(OURS)
        self.finish(place, b"x" * 700_000 + b"\n", b"{}\n")
        theirs = ConfigMapPlace(config_maps, uri, THEIRS, "ml/other")
        holder = theirs.claim(THEIRS)
        assert holder is not None
        with monkeypatch.context() as broken:
            broken.setattr(config_maps, "delete", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                theirs.replace(THEIRS, holder)
        found = config_maps.get(namespace, "answers")
        assert found is not None
        assert MANIFEST_ANNOTATION not in found["metadata"]["annotations"]
        assert config_maps.get(namespace, "answers-1") is not None
        assert theirs.claim(THEIRS) is None
        assert config_maps.get(namespace, "answers-1") is None

    def test_a_later_life_of_the_run_is_told_from_this_one(self, place: ConfigMapPlace) -> None:
        assert not place.has_later(OURS)
        place.claim(replace(OURS, since="2026-01-02T00:00:00Z"))
        assert place.has_later(replace(OURS, since="2026-01-01T00:00:00Z"))
        assert not place.has_later(replace(OURS, since="2026-01-02T00:00:00Z"))
        assert not place.has_later(replace(THEIRS, since="2026-01-01T00:00:00Z"))

    def test_a_run_that_is_handed_over_keeps_the_tag_that_the_claim_names(
        self, place: ConfigMapPlace, config_maps: ConfigMaps, uri: str
    ) -> None:
        elsewhere = replace(OURS, installation="cluster-2", run_tag="their-tag")
        place.claim(elsewhere)
        here = ConfigMapPlace(config_maps, uri, OURS, "ml/triage")
        holder = here.claim(OURS)
        assert holder is not None
        assert here.taken_by(OURS) == "cluster-2"
        assert here.replace(replace(OURS, run_tag="their-tag"), holder)
        assert here.holds(OURS)
        assert here.taken_by(OURS) == ""
        assert here.taken_by(THEIRS) == ""
        found = here.claim(OURS)
        assert found is not None
        assert found.run_tag == "their-tag"
        assert here.claim(replace(OURS, run_tag="their-tag")) is None

    def test_results_that_may_still_be_gone_on_with_say_so(
        self, place: ConfigMapPlace, config_maps: ConfigMaps, uri: str
    ) -> None:
        place.claim(OURS)
        place.write_manifest({"final": False})
        holder = ConfigMapPlace(config_maps, uri, THEIRS, "ml/other").claim(THEIRS)
        assert holder is not None
        assert holder.finished
        assert not holder.final

    def test_a_place_taken_over_by_another_run_takes_no_results(
        self, place: ConfigMapPlace, config_maps: ConfigMaps, uri: str, namespace: str
    ) -> None:
        place.claim(OURS)
        part = place.part("results", 0)
        config_maps.delete(namespace, "answers")
        ConfigMapPlace(config_maps, uri, THEIRS, "ml/other").claim(THEIRS)
        part.write(b"{}\n")
        with pytest.raises(Stalled):
            part.commit()


class TestBlocking:
    def test_a_stale_replace_or_delete_does_nothing(
        self, config_maps: ConfigMaps, namespace: str
    ) -> None:
        made_by_hand(config_maps, namespace, "x", data={"n": "1"})
        first = config_maps.get(namespace, "x")
        assert first is not None
        stale = json.loads(json.dumps(first))
        first["data"] = {"n": "2"}
        assert config_maps.replace(namespace, first)
        assert config_maps.replace(namespace, stale) is None
        version = stale["metadata"]["resourceVersion"]
        assert not config_maps.delete(namespace, "x", version=version)
        found = config_maps.get(namespace, "x")
        assert found is not None
        assert found["data"] == {"n": "2"}

    def test_what_rbac_forbids_is_stalled(
        self, control_plane: ControlPlane, namespace: str, kubectl: Any
    ) -> None:
        kubectl("create", "serviceaccount", "nobody", "-n", namespace)
        kubeconfig = control_plane.service_account_kubeconfig(namespace, "nobody")

        async def connect() -> KubeConnection:
            client = await KubeClient.connect(str(kubeconfig))
            try:
                return await client.connection()
            finally:
                await client.close()

        with ConfigMaps(asyncio.run(connect())) as denied, pytest.raises(Stalled, match="RBAC"):
            denied.get(namespace, "x")

    def test_a_server_that_is_not_there_is_retry(
        self, control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("batchinference.adapters.kube.blocking._BACKOFF_S", 0.001)
        connection = KubeConnection("https://127.0.0.1:9", ca_file=str(control_plane.ca_file))
        with ConfigMaps(connection) as nobody, pytest.raises(Retry):
            nobody.get("default", "x")
