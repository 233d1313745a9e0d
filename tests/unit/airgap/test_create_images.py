# SPDX-License-Identifier: Apache-2.0
"""Images of a bundle: the manifest of one platform or the whole index, as they are, their layers once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sovereign_airgap.bundle.index import ORIGIN_NOTE, Kind, Root
from sovereign_airgap.bundle.layout import Directory
from sovereign_airgap.bundle.verify import verify
from sovereign_airgap.errors import (
    ArtifactNotFound,
    DigestMismatch,
    InvalidSpec,
    MalformedManifest,
    RegistryBlobCorrupt,
    SizeMismatch,
    SovereignError,
)
from sovereign_airgap.manifest import INDEX_TYPE, MANIFEST_TYPE, Descriptor
from sovereign_airgap.oci import DOCKER_INDEX_TYPE, DOCKER_MANIFEST_TYPE
from sovereign_airgap.progress import Progress
from tests.unit.airgap.creations import (
    LAYER_TYPE,
    Connected,
    Opened,
    digest_of,
    push_document,
    push_image,
    push_index,
)
from tests.unit.airgap.models import some_bytes
from tests.unit.airgap.registry_double import cut_body, status

BOTH = ("linux/amd64", "linux/arm64")


def image_of(side: Connected, tag: str = ":1.2", **more: Any) -> tuple[Opened, Root]:
    """A bundle of one image that the registry has under this tag."""
    reference = f"{side.registry.host}/tools/pause{tag}"
    spec = side.spec(models=[], images=[{"reference": reference, **more}])
    opened = Opened(side.create(spec=spec).path)
    opened.require_whole()
    verify(Directory(opened.path), [], 1, Progress())
    (root,) = opened.index.of_kind(Kind.IMAGE)
    return opened, root


@pytest.mark.parametrize("named", [True, False])
def test_an_image_comes_under_its_own_digest(side: Connected, named: bool) -> None:
    pushed = push_image(side.registry, "1.2", named=named)
    opened, root = image_of(side)
    assert root.descriptor == pushed
    assert root.name == "tools/pause:1.2"
    assert dict(root.notes)[ORIGIN_NOTE] == f"{side.registry.host}/tools/pause:1.2@{pushed.digest}"
    manifest = opened.json(pushed)
    for layer in [manifest["config"], *manifest["layers"]]:  # type: ignore[misc]
        assert layer["digest"] in opened.blobs  # type: ignore[index,call-overload]
    gets = [request for request in side.registry.seen if request == "GET blobs"]
    assert len(gets) == 3, "config and two layers, each read once"


def test_one_platform_of_an_index_is_taken_and_the_index_remembered(side: Connected) -> None:
    children = {
        name: push_image(side.registry, "", architecture=name.split("/")[1])
        for name in ("unknown/unknown", "linux/amd64", "linux/arm64/v8")
    }
    index = push_index(side.registry, "1.2", children)
    opened, root = image_of(side)
    assert root.descriptor == children["linux/amd64"]
    assert dict(root.notes)[ORIGIN_NOTE].endswith(f":1.2@{index.digest}")
    assert str(index.digest) not in opened.blobs
    assert str(children["linux/arm64/v8"].digest) not in opened.blobs


@pytest.mark.parametrize("wish", ["linux/arm64", "linux/arm64/v8"])
def test_a_variant_may_be_left_out_of_the_wish(side: Connected, wish: str) -> None:
    arm = push_image(side.registry, "", architecture="arm64")
    push_index(side.registry, "1.2", {"linux/amd64": push_image(side.registry, ""), "linux/arm64/v8": arm})
    _, root = image_of(side, platform=wish)
    assert root.descriptor == arm


def test_all_platforms_are_the_whole_index_with_layers_once(side: Connected) -> None:
    children = {
        name: push_image(side.registry, "", architecture=name[6:]) for name in ("linux/amd64", "linux/arm64")
    }
    index = push_index(side.registry, "1.2", children)
    opened, root = image_of(side, platform="all")
    assert root.descriptor == index
    # Two configs, the first layer shared by both, a second layer each; bill and contents.
    assert len(opened.blobs) == 1 + 2 + 2 + 1 + 2 + 2
    assert len([request for request in side.registry.seen if request == "GET blobs"]) == 5


def test_an_index_of_indexes_and_the_types_of_docker_are_followed(side: Connected) -> None:
    config = push_image(side.registry, "")
    content, _ = side.registry.manifests[str(config.digest)]
    manifest = {**json.loads(content), "mediaType": DOCKER_MANIFEST_TYPE}
    image = push_document(side.registry, "", manifest, DOCKER_MANIFEST_TYPE)
    platform = {"os": "linux", "architecture": "amd64"}
    inner = push_document(
        side.registry,
        "",
        {
            "schemaVersion": 2,
            "mediaType": DOCKER_INDEX_TYPE,
            "manifests": [{**image.as_json(), "platform": platform}],
        },
        DOCKER_INDEX_TYPE,
    )
    outer = {"schemaVersion": 2, "manifests": [{**inner.as_json(), "platform": platform}]}
    push_document(side.registry, "1.2", outer, INDEX_TYPE)
    _, root = image_of(side)
    assert root.descriptor == image


def test_an_image_by_digest_is_called_by_its_digest(side: Connected) -> None:
    pushed = push_image(side.registry, "")
    _, root = image_of(side, tag=f"@{pushed.digest}")
    assert root.tag == f"sha256-{pushed.digest.hex[:12]}"
    assert dict(root.notes)[ORIGIN_NOTE] == f"{side.registry.host}/tools/pause@{pushed.digest}"


def refused(side: Connected, kind: type[SovereignError], told: str, tag: str = ":1.2", **more: Any) -> None:
    with pytest.raises(kind, match=told):
        image_of(side, tag, **more)
    assert not side.out.exists()


def test_a_platform_that_is_not_there_is_told_with_those_that_are(side: Connected) -> None:
    arm = push_image(side.registry, "", architecture="arm64")
    push_index(side.registry, "1.2", {"linux/arm64/v8": arm, "unknown/unknown": arm})
    refused(side, ArtifactNotFound, "for linux/amd64, found it for linux/arm64/v8; choose")
    push_image(side.registry, "1.2", architecture="arm64")
    refused(side, ArtifactNotFound, "for linux/amd64, found it for .'linux', 'arm64'.; choose")


def test_an_index_with_an_absent_child_is_refused_as_a_whole(side: Connected) -> None:
    children = {
        name: push_image(side.registry, "", architecture=name[6:]) for name in ("linux/amd64", "linux/arm64")
    }
    push_index(side.registry, "1.2", children)
    del side.registry.manifests[str(children["linux/arm64"].digest)]
    refused(side, ArtifactNotFound, "found none", platform="all")


def test_an_index_without_end_is_refused(side: Connected) -> None:
    inner = push_image(side.registry, "")
    for _ in range(6):
        inner = push_index(side.registry, "1.2", {"linux/amd64": inner})
    refused(side, MalformedManifest, "at most 4 levels")
    refused(side, SovereignError, "at most 4 levels", platform="all")


def test_bytes_that_are_not_what_the_digest_says_end_the_run(side: Connected) -> None:
    push_image(side.registry, "1.2")
    layer = digest_of(some_bytes(10_000, "0"))
    good = side.registry.blobs[layer]
    side.registry.blobs[layer] = good[:-1] + bytes([good[-1] ^ 1])
    refused(side, RegistryBlobCorrupt, "the registry's own copy is damaged")
    side.registry.blobs[layer] = good[:-1]
    refused(side, SizeMismatch, "expected 10000 bytes")
    del side.registry.blobs[layer]
    refused(side, ArtifactNotFound, "found none")
    side.registry.blobs[layer] = good
    opened, _ = image_of(side)
    assert layer in opened.blobs


def test_a_manifest_that_is_not_what_the_digest_says_ends_the_run(side: Connected) -> None:
    pushed = push_image(side.registry, "")
    content, media_type = side.registry.manifests[str(pushed.digest)]
    side.registry.manifests[str(pushed.digest)] = (content + b" ", media_type)
    refused(side, DigestMismatch, "found bytes of", tag=f"@{pushed.digest}")
    side.registry.manifests[str(pushed.digest)] = (content, media_type)
    short = Descriptor(MANIFEST_TYPE, pushed.digest, pushed.size - 1)
    push_index(side.registry, "1.2", {"linux/amd64": short})
    refused(side, SizeMismatch, "as its index says")
    push_document(side.registry, "1.2", {"schemaVersion": 1, "layers": []}, MANIFEST_TYPE)
    refused(side, MalformedManifest, "schemaVersion 2")
    push_document(side.registry, "1.2", [], MANIFEST_TYPE)
    refused(side, MalformedManifest, "JSON object")


def test_a_broken_line_is_gone_on_with_and_not_begun_again(side: Connected) -> None:
    push_image(side.registry, "1.2", layers=1, size=3_000_000)
    side.registry.next("GET blobs", lambda handler: False, cut_body(2_000_000), status(503))
    image_of(side)
    now = side.progress.snapshot()
    assert now.bytes_done == now.bytes_total


def test_two_images_of_one_name_are_refused(side: Connected) -> None:
    push_image(side.registry, "1.2")
    image = {"reference": f"{side.registry.host}/tools/pause:1.2"}
    with pytest.raises(InvalidSpec, match=r"tools/pause:1\.2' twice"):
        side.create(spec=side.spec(models=[], images=[image, image]))


def test_layers_that_two_images_share_are_read_once(side: Connected) -> None:
    push_image(side.registry, "1.2", seed="one")
    push_image(side.registry, "1.3", seed="one", architecture="amd64", layers=3)
    images = [{"reference": f"{side.registry.host}/tools/pause:{tag}"} for tag in ("1.2", "1.3")]
    opened = Opened(side.create(spec=side.spec(models=[], images=images)).path)
    layers = {digest_of(some_bytes(10_000, f"one{n}{'amd64' if n else ''}")) for n in range(3)}
    assert layers <= opened.blobs
    assert len([request for request in side.registry.seen if request == "GET blobs"]) == 3 + 1
    assert LAYER_TYPE in opened.blob(opened.root(Kind.IMAGE, "tools/pause:1.3").descriptor).decode()
