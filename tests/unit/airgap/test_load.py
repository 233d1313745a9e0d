# SPDX-License-Identifier: Apache-2.0
"""Loading: what is in the registry afterwards, what is not sent twice, and a registry that stumbles."""

from __future__ import annotations

import base64
import dataclasses
import errno
import json
from pathlib import Path

import pytest

from sovereign_airgap.access import Access
from sovereign_airgap.bundle import load as loading
from sovereign_airgap.bundle import sending
from sovereign_airgap.bundle.index import Kind
from sovereign_airgap.bundle.load import LoadOptions
from sovereign_airgap.bundle.opening import open_bundle
from sovereign_airgap.bundle.split import split
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import (
    DigestMismatch,
    DiskFailed,
    RegistryBlobCorrupt,
    RegistryForbidden,
    RegistryUnavailable,
    UnsafeRedirect,
)
from sovereign_airgap.facts import ARTIFACT_TYPE as FACTS_TYPE
from sovereign_airgap.manifest import INDEX_TYPE, MANIFEST_TYPE, canonical_json, fallback_tag
from sovereign_airgap.progress import Progress
from sovereign_airgap.pull import PullOptions, pull
from sovereign_airgap.reference import OciReference
from tests.unit.airgap.bundles import (
    COMMIT_ONE,
    COMMIT_TWO,
    MODEL_ONE,
    MODEL_TWO,
    NAME,
    a_root,
    index_digest,
    index_of,
    model_files,
)
from tests.unit.airgap.conftest import QUICK
from tests.unit.airgap.loading import SHARD, WIDTH, Load, blob_of, claims, documents, flip, tags
from tests.unit.airgap.registry_double import RegistryDouble, _Handler, drop_after, elsewhere, status

# -- what is there afterwards -------------------------------------------------------------------------------


def test_every_root_is_in_the_registry_under_its_tag(load: Load, bundle: Path, place: RegistryDouble) -> None:
    found = load(bundle)

    index = index_of(bundle)
    expected = {
        f"{root.repository}/{root.tag}": str(root.descriptor.digest)
        for root in index.roots
        if root.kind is not Kind.FILE
    }
    assert {tag: place.tags[tag] for tag in tags(place)} == expected
    assert {placed.reference.name for placed in found.placed} == {
        f"{place.host}/{root.repository}@{root.descriptor.digest}"
        for root in index.roots
        if root.kind is not Kind.FILE
    }
    assert found.cargo.index_digest == index_digest(bundle)
    assert claims(place) == []


def test_what_is_pulled_is_what_was_bundled(
    load: Load, bundle: Path, place: RegistryDouble, tmp_path: Path
) -> None:
    found = load(bundle, "team/site")
    for repository in (MODEL_ONE, MODEL_TWO):
        [placed] = [p for p in found.placed if p.root.repository == repository and p.root.kind is Kind.MODEL]
        assert placed.reference.repository == f"team/site/{repository}"
        target = tmp_path / repository
        pull(
            placed.reference, target, PullOptions(access=Access(plain_http=True), patience=QUICK), Progress()
        )
        for path, content in model_files(repository, width=WIDTH).items():
            assert (target / path).read_bytes() == content


def test_models_are_tagged_last_and_only_after_every_manifest(
    load: Load, bundle: Path, place: RegistryDouble
) -> None:
    order: list[str] = []
    put = _Handler._manifests

    def note(handler: _Handler) -> None:
        if handler.command == "PUT" and "sovereign/state" not in handler.repository:
            order.append("digest" if handler.rest.startswith("sha256:") else handler.rest)
        put(handler)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Handler, "_manifests", note)
        load(bundle)

    first_tag = next(at for at, what in enumerate(order) if what != "digest")
    assert "digest" not in order[first_tag:]
    assert set(order[-2:]) == {COMMIT_ONE, COMMIT_TWO}
    assert "POST uploads" not in place.seen[-(len(order) - first_tag) :]


def test_a_second_load_changes_nothing_and_sends_nothing(
    load: Load, bundle: Path, place: RegistryDouble
) -> None:
    load(bundle)
    before = dict(place.tags)
    pushed = place.pushed_bytes
    manifests = set(place.manifests)

    again = load(bundle)

    assert (again.sent, again.sent_bytes, again.mounted, again.tags_moved) == (0, 0, 0, 0)
    assert place.tags == before
    assert place.pushed_bytes == pushed
    assert {name for name in place.manifests if name not in manifests and "sovereign/state" not in name} == (
        set()
    )


def test_a_shared_shard_is_sent_once_and_mounted(load: Load, bundle: Path, place: RegistryDouble) -> None:
    found = load(bundle)
    shared = blob_of(bundle, MODEL_ONE, SHARD)
    assert shared == blob_of(bundle, MODEL_TWO, SHARD)
    assert {(MODEL_ONE, str(shared)), (MODEL_TWO, str(shared))} <= place.linked
    assert found.sent_bytes == sum(
        path.stat().st_size
        for path in (bundle / "blobs/sha256").iterdir()
        if path.name not in documents(bundle)
    )
    assert found.mounted > 2


def test_a_registry_that_does_not_mount_gets_the_bytes_twice(
    load: Load, bundle: Path, place: RegistryDouble
) -> None:
    place.mounts = False
    found = load(bundle)
    assert found.mounted == 0
    assert (MODEL_TWO, str(blob_of(bundle, MODEL_TWO, SHARD))) in place.linked
    assert place.uploads == {}, "a session was left open"


def test_a_login_that_may_not_mount_sends_the_bytes(load: Load, bundle: Path, place: RegistryDouble) -> None:
    def forbid_mounts(handler: _Handler) -> bool:
        if "mount" not in handler.query:
            return False
        handler.reply(403)
        return True

    place.next("POST uploads", *[forbid_mounts] * 200)
    assert load(bundle).mounted == 0


def test_files_stay_with_the_record(load: Load, bundle: Path, place: RegistryDouble) -> None:
    load(bundle)
    record = json.loads(place.manifests[f"sovereign/state/{NAME}"][0])
    titles = {
        layer.get("annotations", {}).get("org.opencontainers.image.title") for layer in record["layers"]
    }
    assert {root.title for root in index_of(bundle).of_kind(Kind.FILE)} <= titles


# -- referrers ----------------------------------------------------------------------------------------------


def a_stranger(place: RegistryDouble, repository: str, artifact_type: str) -> dict[str, object]:
    """A manifest that somebody else has pushed; returns its entry."""
    content = canonical_json({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "note": artifact_type})
    digest = Digest.of(content)
    place.manifests[f"{repository}/{digest}"] = (content, MANIFEST_TYPE)
    return {
        "mediaType": MANIFEST_TYPE,
        "digest": str(digest),
        "size": len(content),
        "artifactType": artifact_type,
    }


def test_referrers_that_the_registry_knows_stay(load: Load, bundle: Path, place: RegistryDouble) -> None:
    model = a_root(bundle, MODEL_ONE)
    tag = f"{MODEL_ONE}/{fallback_tag(model.descriptor.digest)}"
    signature = a_stranger(place, MODEL_ONE, "application/vnd.example.signature")
    old_facts = a_stranger(place, MODEL_ONE, FACTS_TYPE)
    dangling = {**signature, "digest": f"sha256:{'0' * 64}"}
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [signature, old_facts, dangling]}
    place.manifests[tag] = (json.dumps(index).encode(), INDEX_TYPE)

    load(bundle)

    listed = json.loads(place.manifests[tag][0])["manifests"]
    assert [entry["digest"] for entry in listed if entry["artifactType"] != FACTS_TYPE] == [
        signature["digest"]
    ]
    [facts] = [entry for entry in listed if entry["artifactType"] == FACTS_TYPE]
    assert facts["digest"] != old_facts["digest"]
    assert load(bundle).tags_moved == 0


# -- a registry that stumbles -------------------------------------------------------------------------------


def test_a_dropped_upload_goes_on_where_the_registry_stands(
    load: Load, bundle: Path, place: RegistryDouble
) -> None:
    place.next("PATCH uploads", drop_after(100_000))
    found = load(bundle, parallel=1)
    large = sum(
        path.stat().st_size
        for path in (bundle / "blobs/sha256").iterdir()
        if path.stat().st_size > 1024 * 1024
    )
    assert place.pushed_bytes == large, "bytes that the registry had acknowledged were sent again"
    assert found.sent > 0


def test_a_registry_that_wants_small_pieces_gets_them(
    load: Load, bundle: Path, place: RegistryDouble
) -> None:
    place.largest_patch = 1024 * 1024
    load(bundle, chunk=8 * 1024 * 1024)
    assert (MODEL_ONE, str(blob_of(bundle, MODEL_ONE, SHARD))) in place.linked


def test_a_foreign_location_is_refused(load: Load, bundle: Path, place: RegistryDouble) -> None:
    place.next("POST uploads", *[elsewhere] * 50)
    with pytest.raises(UnsafeRedirect):
        load(bundle)
    assert tags(place) == []


def test_a_redirect_is_not_followed(load: Load, bundle: Path, place: RegistryDouble) -> None:
    away = status(307, Location="http://169.254.169.254/latest/meta-data/")
    place.next("PATCH uploads", *[away] * 500)
    with pytest.raises(RegistryUnavailable):
        load(bundle)
    assert tags(place) == []


def test_a_login_that_ends_in_the_middle_is_named(load: Load, bundle: Path, place: RegistryDouble) -> None:
    denied = status(401, WWW_Authenticate='Basic realm="double"')
    place.next("PATCH uploads", *[denied] * 500)
    with pytest.raises(RegistryForbidden):
        load(bundle)
    assert tags(place) == []


def test_a_blob_that_is_collected_before_its_manifest_comes_is_brought_again(
    load: Load, bundle: Path, place: RegistryDouble
) -> None:
    shard = str(blob_of(bundle, MODEL_ONE, SHARD))

    def collect(handler: _Handler) -> bool:
        place.blobs.pop(shard, None)
        place.linked -= {(repository, shard) for repository in (MODEL_ONE, MODEL_TWO)}
        return False

    struck = []

    def collect_once(handler: _Handler) -> bool:
        if not struck and handler.repository == MODEL_ONE and handler.rest.startswith("sha256:"):
            struck.append(handler.rest)
            return collect(handler)
        return False

    place.next("PUT manifests", *[collect_once] * 100)
    load(bundle)
    assert struck
    assert {(MODEL_ONE, shard), (MODEL_TWO, shard)} <= place.linked
    assert shard in place.blobs


def test_a_blob_of_another_length_in_the_registry_is_named(
    load: Load, bundle: Path, place: RegistryDouble
) -> None:
    load(bundle)
    shard = str(blob_of(bundle, MODEL_ONE, SHARD))
    place.blobs[shard] = place.blobs[shard][:-1]
    with pytest.raises(RegistryBlobCorrupt) as caught:
        load(bundle)
    assert "registry verify --repair" in str(caught.value)


def test_a_manifest_that_went_bad_in_the_registry_is_named(
    load: Load, bundle: Path, place: RegistryDouble
) -> None:
    load(bundle)
    name = f"{MODEL_ONE}/{a_root(bundle, MODEL_ONE).descriptor.digest}"
    content, media_type = place.manifests[name]
    place.manifests[name] = (content.replace(b"tiny", b"tinx"), media_type)
    with pytest.raises(DigestMismatch):
        load(bundle)


def test_of_parts_the_one_to_copy_again_is_named(
    load: Load, bundle: Path, place: RegistryDouble, tmp_path: Path
) -> None:
    written = split(bundle, tmp_path / "parts", 1024 * 1024)
    part = sorted((tmp_path / "parts").glob("*.part-*"))[2]
    flip(part, at=500_000)
    with pytest.raises(DigestMismatch, match=f"{part.name}.* copy this part again"):
        load(written.path)
    assert tags(place) == []
    flip(part, at=500_000)
    load(written.path)
    assert len(tags(place)) == 6


# -- disks and logins ---------------------------------------------------------------------------------------


def test_a_disk_that_cannot_be_read_has_its_reason_and_the_next_try_goes_on(
    load: Load, bundle: Path, place: RegistryDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = sending.read_into

    def fail(stream: object, view: memoryview) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(sending, "read_into", fail)
        with pytest.raises(DiskFailed):
            load(bundle)
    assert sending.read_into is honest
    assert tags(place) == []
    assert place.uploads == {}
    load(bundle)
    assert len(tags(place)) == 6


@pytest.mark.parametrize("bearer", [False, True])
def test_a_login_that_is_asked_for_again_within_a_blob_is_given_again(
    bundle: Path, tmp_path: Path, load_options: LoadOptions, bearer: bool
) -> None:
    with RegistryDouble(login=("anna", "secret"), bearer=bearer, scoped=True) as double:
        config = tmp_path / "docker.json"
        auth = base64.b64encode(b"anna:secret").decode()
        config.write_text(json.dumps({"auths": {double.host: {"auth": auth}}}))

        def expire(handler: _Handler) -> bool:
            """Every token given so far has ended."""
            double.tokens_expired = double.tokens_given
            scheme = (
                f'Bearer realm="http://{double.host}/token",service="double"' if bearer else 'Basic realm="d"'
            )
            handler.close_connection = True
            handler.reply(401, WWW_Authenticate=scheme, Connection="close")
            return True

        double.next("PATCH uploads", *[lambda handler: False] * 3, expire)
        wanted = dataclasses.replace(load_options, access=Access(plain_http=True, docker_config=config))
        found = loading.load(open_bundle(bundle), OciReference(double.host), wanted, Progress())
        assert len(tags(double)) == 6
        assert found.sent > 0
