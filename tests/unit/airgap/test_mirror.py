# SPDX-License-Identifier: Apache-2.0
"""Mirroring one commit: what arrives, what is skipped, and what survives a registry in trouble."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from dev.hub import HubServer
from sovereign_airgap.errors import (
    NothingServable,
    RegistryBlobCorrupt,
    RegistryForbidden,
    RegistryUnavailable,
    SovereignError,
    TagConflict,
    UnsafeRedirect,
)
from sovereign_airgap.facts import ARTIFACT_TYPE, ModelFacts
from sovereign_airgap.manifest import ModelManifest, fallback_tag
from sovereign_airgap.mirror import MirrorOptions, MirrorResult, mirror
from sovereign_airgap.progress import Progress
from sovereign_airgap.reference import HubReference, OciReference
from sovereign_airgap.selection import Wish
from tests.unit.airgap.models import TAKEN, a_safetensors, write
from tests.unit.airgap.registry_double import (
    Fault,
    RegistryDouble,
    answer_lost,
    drop_after,
    elsewhere,
    forget_session,
    status,
)


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


class World:
    """One hub, one registry double, one commit."""

    def __init__(
        self,
        files: dict[str, bytes],
        registry: RegistryDouble,
        source: HubReference,
        target: OciReference,
        options: MirrorOptions,
    ) -> None:
        self.files, self.registry, self.source, self.target = files, registry, source, target
        self.options = options
        self.progress = Progress()

    def mirror(self, **changes: object) -> MirrorResult:
        options = dataclasses.replace(self.options, **changes)  # type: ignore[arg-type]
        return mirror(self.source, self.target, options, self.progress)

    def require_whole(self, result: MirrorResult) -> None:
        """The registry holds exactly what the hub has, and the tag points to it."""
        content, _ = self.registry.manifests[result.tag]
        assert sha256(content) == str(result.digest)
        manifest = ModelManifest.parse(content)
        assert [layer.path for layer in manifest.layers] == list(TAKEN)
        for layer in manifest.layers:
            assert self.registry.blobs[str(layer.digest)] == self.files[layer.path], layer.path
        assert self.registry.blobs[str(manifest.config.digest)]
        now = self.progress.snapshot()
        assert (now.bytes_done, now.files_done) == (now.bytes_total, now.files_total) == (result.size, 8)


@pytest.fixture
def world(
    files: dict[str, bytes],
    registry: RegistryDouble,
    source: HubReference,
    target: OciReference,
    options: MirrorOptions,
) -> World:
    return World(files, registry, source, target, options)


def test_a_commit_arrives_whole_and_its_tag_comes_last(world: World) -> None:
    result = world.mirror()
    world.require_whole(result)
    assert result.tag == world.source.revision
    assert result.reference.repository == "models/org/tiny-moe"
    assert world.registry.seen[-1] == "PUT manifests"
    assert not world.registry.uploads
    assert {left.path for left in result.left_out} == {"modeling_tiny.py", "pytorch_model.bin"}


def test_facts_are_found_through_the_fallback_tag(world: World) -> None:
    result = world.mirror()
    index = json.loads(world.registry.manifests[fallback_tag(result.digest)][0])
    (entry,) = index["manifests"]
    assert entry["artifactType"] == ARTIFACT_TYPE
    manifest = json.loads(world.registry.manifests[entry["digest"]][0])
    assert manifest["subject"]["digest"] == str(result.digest)
    facts = ModelFacts.parse(world.registry.blobs[manifest["layers"][0]["digest"]])
    assert facts == result.facts
    assert (facts.layers, facts.experts, facts.kv_bytes_per_token) == (2, 2, 2 * 2 * 2 * 4 * 2)
    assert facts.bytes_experts == 4 * 512 * 16 * 2
    assert facts.bytes_total == sum(
        (facts.bytes_experts, facts.bytes_attention, facts.bytes_embeddings, facts.bytes_other)
    )


def test_a_second_mirror_sends_no_weights_and_gives_the_same_digest(world: World) -> None:
    first = world.mirror()
    sent = world.registry.pushed_bytes
    world.registry.seen.clear()
    world.progress = Progress()
    again = world.mirror()
    world.require_whole(again)
    assert (again.digest, again.facts) == (first.digest, first.facts)
    assert world.registry.pushed_bytes == sent
    assert not [request for request in world.registry.seen if request.endswith("uploads")]


def test_a_half_mirrored_commit_goes_on_with_the_missing_files(world: World) -> None:
    result = world.mirror()
    shard = sha256(world.files["model-00002-of-00002.safetensors"])
    del world.registry.blobs[shard]
    sent = world.registry.pushed_bytes
    world.progress = Progress()
    world.require_whole(world.mirror())
    assert world.registry.pushed_bytes - sent == len(world.files["model-00002-of-00002.safetensors"])
    assert result.digest


def test_a_mounted_blob_is_not_sent(world: World) -> None:
    world.mirror()
    world.registry.next("HEAD blobs", *[status(404)] * 12)
    sent = world.registry.pushed_bytes
    world.progress = Progress()
    world.require_whole(world.mirror(mount_from=("models/elsewhere",)))
    assert world.registry.pushed_bytes == sent


@pytest.mark.parametrize(
    ("request_kind", "faults"),
    [
        ("PATCH uploads", [status(500)]),
        ("PATCH uploads", [status(429, Retry_After="0")]),
        ("PATCH uploads", [drop_after(0)]),
        ("PATCH uploads", [drop_after(1)]),
        ("PATCH uploads", [drop_after(3000), drop_after(100), drop_after(5000)]),
        ("PATCH uploads", [answer_lost]),
        ("PATCH uploads", [forget_session]),
        ("PUT uploads", [status(500)]),
        ("PUT uploads", [answer_lost]),
        ("PUT uploads", [forget_session]),
        ("PUT uploads", [status(400)]),
        ("POST uploads", [status(503, Retry_After="0"), status(502)]),
        ("HEAD blobs", [status(500)]),
        ("PUT manifests", [status(500)]),
        ("GET manifests", [status(503)]),
    ],
    ids=lambda value: None,
)
def test_a_registry_in_trouble_gets_every_byte_in_the_end(
    world: World, request_kind: str, faults: list[Fault]
) -> None:
    world.registry.next(request_kind, *faults)
    world.require_whole(world.mirror(parallel=1))


def test_after_a_dropped_patch_only_the_missing_bytes_are_sent(world: World) -> None:
    world.registry.next("PATCH uploads", status(500), drop_after(5000))
    world.require_whole(world.mirror(parallel=1))
    weights = sum(len(world.files[path]) for path in TAKEN if path.endswith(".safetensors"))
    assert world.registry.pushed_bytes == weights


def test_a_proxy_that_takes_small_pieces_gets_small_pieces(
    world: World, tmp_path: Path, options: MirrorOptions
) -> None:
    # A shard and a vocabulary that are larger than what the proxy takes at once.
    shard = a_safetensors({"model.layers.0.mlp.weight": ("BF16", [700, 1024])})
    with HubServer(tmp_path / "hub") as hub:
        write(tmp_path / "hub" / "org/large", {"model.safetensors": shard, "vocab.txt": b"ab" * 700_000})
        world.registry.largest_patch = 1024 * 1024
        source = HubReference("org/large", hub.commit("org/large"))
        changed = dataclasses.replace(options, endpoint=hub.endpoint, chunk=4 * 1024 * 1024)
        mirror(source, world.target, changed, Progress())
    assert world.registry.blobs[sha256(shard)] == shard
    assert sha256(b"ab" * 700_000) in world.registry.blobs


def test_a_proxy_that_takes_nothing_is_named(world: World) -> None:
    world.registry.largest_patch = 10
    with pytest.raises(RegistryUnavailable, match="413"):
        world.mirror()
    assert world.registry.tags == {}


@pytest.mark.parametrize("kind", ["PATCH uploads", "PUT uploads", "POST uploads", "PUT manifests"])
def test_an_outage_ends_in_a_reason_and_moves_no_tag(world: World, kind: str) -> None:
    world.registry.next(kind, *[status(500)] * 40)
    with pytest.raises(RegistryUnavailable) as caught:
        world.mirror()
    assert caught.value.retryable
    assert world.source.revision not in world.registry.tags
    assert not world.registry.uploads, "sessions are cancelled"
    world.registry.next(kind)
    world.registry._faults.clear()
    world.progress = Progress()
    world.require_whole(world.mirror())


def test_an_upload_location_on_another_origin_is_refused(world: World) -> None:
    world.registry.next("POST uploads", *[elsewhere] * 8)
    with pytest.raises(UnsafeRedirect, match="relativeurls"):
        world.mirror()


@pytest.mark.parametrize("location", ["http://[", "http://h:x/", "ftp://h/"])
def test_an_upload_location_that_is_no_address_is_refused(world: World, location: str) -> None:
    world.registry.next("POST uploads", *[status(202, Location=location)] * 8)
    with pytest.raises(UnsafeRedirect, match="no web address"):
        world.mirror()


def test_a_blob_of_another_length_is_named_corrupt(world: World) -> None:
    shard = world.files["model-00001-of-00002.safetensors"]
    world.registry.blobs[sha256(shard)] = shard[:-1]
    with pytest.raises(RegistryBlobCorrupt, match="repair"):
        world.mirror()
    assert world.registry.tags == {}


def test_a_commit_tag_at_another_digest_is_not_moved(world: World) -> None:
    world.registry.manifests[world.source.revision] = (b"{}", "application/json")
    with pytest.raises(TagConflict, match="not moved"):
        world.mirror()
    assert world.registry.manifests[world.source.revision][0] == b"{}"


def test_an_additional_tag_is_set_too(world: World) -> None:
    world.target = OciReference(world.target.host, "models/mine", "stable")
    result = world.mirror()
    assert world.registry.tags["stable"] == world.registry.tags[result.tag] == str(result.digest)


def test_a_selection_gets_its_own_tag_and_stands_in_the_manifest(world: World) -> None:
    result = world.mirror(wish=Wish(exclude=("README*", "LICENSE")))
    assert result.tag.startswith(world.source.revision + "-")
    manifest = ModelManifest.parse(world.registry.manifests[result.tag][0])
    assert manifest.selection == '{"exclude":["LICENSE","README*"],"include":[]}'
    assert world.source.revision not in world.registry.tags


def test_nothing_servable_moves_no_byte(world: World) -> None:
    with pytest.raises(NothingServable):
        world.mirror(wish=Wish(exclude=("*.safetensors", "*.index.json")))
    assert world.registry.seen == []


@pytest.mark.parametrize("bearer", [False, True])
def test_a_login_is_used_and_renewed(
    world: World, bearer: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = tmp_path_factory.mktemp("docker") / "config.json"
    config.write_text(json.dumps({"auths": {world.registry.host: {"username": "robot", "password": "p:w"}}}))
    world.registry.login, world.registry.bearer = ("robot", "p:w"), bearer
    access = dataclasses.replace(world.options.access, docker_config=config)

    def expire(handler: object) -> bool:
        world.registry.tokens_expired = world.registry.tokens_given
        return False

    if bearer:
        world.registry.next("POST uploads", expire)
    world.require_whole(world.mirror(access=access, parallel=1))


@pytest.mark.parametrize("bearer", [False, True])
def test_without_the_right_login_the_registry_is_forbidden(world: World, bearer: bool) -> None:
    world.registry.login, world.registry.bearer = ("robot", "secret"), bearer
    with pytest.raises(RegistryForbidden) as caught:
        world.mirror()
    assert "secret" not in str(caught.value)


def test_every_error_reads_as_a_sentence(world: World) -> None:
    world.registry.next("POST uploads", *[status(500)] * 40)
    with pytest.raises(SovereignError) as caught:
        world.mirror()
    assert str(caught.value).endswith(".") and len(str(caught.value)) < 1024
