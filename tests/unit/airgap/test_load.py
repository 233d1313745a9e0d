# SPDX-License-Identifier: Apache-2.0
"""Loading: what is in the registry afterwards, what is refused before a tag moves, what is not sent twice."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sovereign_airgap.access import Access
from sovereign_airgap.bundle import load as loading
from sovereign_airgap.bundle.index import Kind
from sovereign_airgap.bundle.layout import INDEX, Directory, blob_path
from sovereign_airgap.bundle.load import Loaded, LoadOptions
from sovereign_airgap.bundle.opening import open_bundle
from sovereign_airgap.bundle.split import split
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import (
    BundleDefective,
    DigestMismatch,
    NotSigned,
    OlderVersion,
    RegistryBlobCorrupt,
    RegistryForbidden,
    RegistryUnavailable,
    SizeMismatch,
    SovereignError,
    TagConflict,
    UnsafeRedirect,
    WrongBase,
)
from sovereign_airgap.facts import ARTIFACT_TYPE as FACTS_TYPE
from sovereign_airgap.manifest import INDEX_TYPE, MANIFEST_TYPE, ModelManifest, canonical_json, fallback_tag
from sovereign_airgap.progress import Progress
from sovereign_airgap.pull import PullOptions, pull
from sovereign_airgap.reference import OciReference
from tests.unit.airgap.bundles import (
    COMMIT_ONE,
    COMMIT_TWO,
    IMAGE,
    MODEL_ONE,
    MODEL_TWO,
    NAME,
    Draft,
    a_bundle,
    a_root,
    index_digest,
    index_of,
    model_files,
)
from tests.unit.airgap.conftest import QUICK
from tests.unit.airgap.registry_double import RegistryDouble, _Handler, drop_after, elsewhere, status

# Shards of 1.1 MB: larger than what is sent in one piece.
WIDTH = 11_500
SHARD = "model-00001-of-00003.safetensors"


@pytest.fixture
def registry(no_docker_config: None) -> Iterator[RegistryDouble]:
    with RegistryDouble(scoped=True) as double:
        yield double


@pytest.fixture
def options() -> LoadOptions:
    return LoadOptions(access=Access(plain_http=True), patience=QUICK, chunk=256 * 1024)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_bundle(tmp_path_factory.mktemp("pristine") / "bundle", width=WIDTH)


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "bundle")


Load = Callable[..., Loaded]


@pytest.fixture
def load(registry: RegistryDouble, options: LoadOptions) -> Load:
    def call(bundle: Path, prefix: str = "", **changes: object) -> Loaded:
        wanted = dataclasses.replace(options, **changes)  # type: ignore[arg-type]
        return loading.load(open_bundle(bundle), OciReference(registry.host, prefix), wanted, Progress())

    return call


def blob_of(bundle: Path, repository: str, path: str) -> Digest:
    content = (bundle / blob_path(a_root(bundle, repository).descriptor.digest)).read_bytes()
    return next(layer.digest for layer in ModelManifest.parse(content).layers if layer.path == path)


def tags(registry: RegistryDouble) -> list[str]:
    """Without the record and claims."""
    return sorted(tag for tag in registry.tags if "sovereign/state/" not in tag)


def claims(registry: RegistryDouble) -> list[str]:
    return [tag for tag in registry.tags if "_loading-" in tag]


def flip(path: Path, at: int = 1000) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


# -- what is there afterwards -------------------------------------------------------------------------------


def test_every_root_is_in_the_registry_under_its_tag(
    load: Load, bundle: Path, registry: RegistryDouble
) -> None:
    found = load(bundle)

    index = index_of(bundle)
    expected = {
        f"{root.repository}/{root.tag}": str(root.descriptor.digest)
        for root in index.roots
        if root.kind is not Kind.FILE
    }
    assert {tag: registry.tags[tag] for tag in tags(registry)} == expected
    assert {placed.reference.name for placed in found.placed} == {
        f"{registry.host}/{root.repository}@{root.descriptor.digest}"
        for root in index.roots
        if root.kind is not Kind.FILE
    }
    assert found.cargo.index_digest == index_digest(bundle)
    assert claims(registry) == []


def test_what_is_pulled_is_what_was_bundled(
    load: Load, bundle: Path, registry: RegistryDouble, tmp_path: Path
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
    load: Load, bundle: Path, registry: RegistryDouble
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
    assert "POST uploads" not in registry.seen[-(len(order) - first_tag) :]


def test_a_second_load_changes_nothing_and_sends_nothing(
    load: Load, bundle: Path, registry: RegistryDouble
) -> None:
    load(bundle)
    before = dict(registry.tags)
    pushed = registry.pushed_bytes
    manifests = set(registry.manifests)

    again = load(bundle)

    assert (again.sent, again.sent_bytes, again.mounted, again.tags_moved) == (0, 0, 0, 0)
    assert registry.tags == before
    assert registry.pushed_bytes == pushed
    assert {
        name for name in registry.manifests if name not in manifests and "sovereign/state" not in name
    } == (set())


def test_a_shared_shard_is_sent_once_and_mounted(load: Load, bundle: Path, registry: RegistryDouble) -> None:
    found = load(bundle)
    shared = blob_of(bundle, MODEL_ONE, SHARD)
    assert shared == blob_of(bundle, MODEL_TWO, SHARD)
    assert {(MODEL_ONE, str(shared)), (MODEL_TWO, str(shared))} <= registry.linked
    assert found.sent_bytes == sum(
        path.stat().st_size
        for path in (bundle / "blobs/sha256").iterdir()
        if path.name not in documents(bundle)
    )
    assert found.mounted > 2


def documents(bundle: Path) -> set[str]:
    """Hex digests of the manifests and indexes in a bundle."""
    found = set()
    for path in (bundle / "blobs/sha256").iterdir():
        content = path.read_bytes()
        if content.startswith(b"{") and b'"schemaVersion":2' in content:
            found.add(path.name)
    return found


def test_a_registry_that_does_not_mount_gets_the_bytes_twice(
    load: Load, bundle: Path, registry: RegistryDouble
) -> None:
    registry.mounts = False
    found = load(bundle)
    assert found.mounted == 0
    assert (MODEL_TWO, str(blob_of(bundle, MODEL_TWO, SHARD))) in registry.linked
    assert registry.uploads == {}, "a session was left open"


def test_a_login_that_may_not_mount_sends_the_bytes(
    load: Load, bundle: Path, registry: RegistryDouble
) -> None:
    def forbid_mounts(handler: _Handler) -> bool:
        if "mount" not in handler.query:
            return False
        handler.reply(403)
        return True

    registry.next("POST uploads", *[forbid_mounts] * 200)
    assert load(bundle).mounted == 0


def test_files_stay_with_the_record(load: Load, bundle: Path, registry: RegistryDouble) -> None:
    load(bundle)
    record = json.loads(registry.manifests[f"sovereign/state/{NAME}"][0])
    titles = {
        layer.get("annotations", {}).get("org.opencontainers.image.title") for layer in record["layers"]
    }
    assert {root.title for root in index_of(bundle).of_kind(Kind.FILE)} <= titles


# -- referrers ----------------------------------------------------------------------------------------------


def a_stranger(registry: RegistryDouble, repository: str, artifact_type: str) -> dict[str, object]:
    """A manifest that somebody else has pushed; returns its entry."""
    content = canonical_json({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "note": artifact_type})
    digest = Digest.of(content)
    registry.manifests[f"{repository}/{digest}"] = (content, MANIFEST_TYPE)
    return {
        "mediaType": MANIFEST_TYPE,
        "digest": str(digest),
        "size": len(content),
        "artifactType": artifact_type,
    }


def test_referrers_that_the_registry_knows_stay(load: Load, bundle: Path, registry: RegistryDouble) -> None:
    model = a_root(bundle, MODEL_ONE)
    tag = f"{MODEL_ONE}/{fallback_tag(model.descriptor.digest)}"
    signature = a_stranger(registry, MODEL_ONE, "application/vnd.example.signature")
    old_facts = a_stranger(registry, MODEL_ONE, FACTS_TYPE)
    dangling = {**signature, "digest": f"sha256:{'0' * 64}"}
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [signature, old_facts, dangling]}
    registry.manifests[tag] = (json.dumps(index).encode(), INDEX_TYPE)

    load(bundle)

    listed = json.loads(registry.manifests[tag][0])["manifests"]
    assert [entry["digest"] for entry in listed if entry["artifactType"] != FACTS_TYPE] == [
        signature["digest"]
    ]
    [facts] = [entry for entry in listed if entry["artifactType"] == FACTS_TYPE]
    assert facts["digest"] != old_facts["digest"]
    assert load(bundle).tags_moved == 0


# -- refused before a tag moves -----------------------------------------------------------------------------


def remove(bundle: Path) -> None:
    (bundle / blob_path(blob_of(bundle, MODEL_ONE, SHARD))).unlink()


def shorten(bundle: Path) -> None:
    path = bundle / blob_path(blob_of(bundle, MODEL_ONE, SHARD))
    os.truncate(path, path.stat().st_size - 1)


def lengthen(bundle: Path) -> None:
    with (bundle / blob_path(blob_of(bundle, MODEL_ONE, SHARD))).open("ab") as file:
        file.write(b"\0")


def surplus_blob(bundle: Path) -> None:
    (bundle / blob_path(Digest.of(b"surplus"))).write_bytes(b"surplus")


def surplus_file(bundle: Path) -> None:
    (bundle / "autorun.inf").write_bytes(b"")


def link(bundle: Path) -> None:
    path = bundle / blob_path(blob_of(bundle, MODEL_ONE, SHARD))
    path.rename(bundle.parent / "elsewhere")
    path.symlink_to(bundle.parent / "elsewhere")


def damage_manifest(bundle: Path) -> None:
    flip(bundle / blob_path(a_root(bundle, MODEL_ONE).descriptor.digest), at=100)


def take_the_records_name(bundle: Path) -> None:
    index = (bundle / INDEX).read_bytes()
    (bundle / INDEX).write_bytes(index.replace(f"{IMAGE}:v1".encode(), b"sovereign/state:v1"))


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (remove, BundleDefective),
        (shorten, SizeMismatch),
        (lengthen, SizeMismatch),
        (surplus_blob, BundleDefective),
        (surplus_file, BundleDefective),
        (link, BundleDefective),
        (damage_manifest, DigestMismatch),
        (take_the_records_name, BundleDefective),
    ],
)
def test_a_defect_that_needs_no_hashing_is_found_before_the_first_request(
    load: Load,
    bundle: Path,
    registry: RegistryDouble,
    spoil: Callable[[Path], None],
    error: type[SovereignError],
) -> None:
    spoil(bundle)
    with pytest.raises(error):
        load(bundle)
    assert registry.seen == []


def test_a_flipped_bit_never_becomes_a_blob_and_the_rest_is_not_sent_again(
    load: Load, bundle: Path, registry: RegistryDouble
) -> None:
    shard = blob_of(bundle, MODEL_ONE, SHARD)
    flip(bundle / blob_path(shard))
    with pytest.raises(DigestMismatch) as caught:
        load(bundle, parallel=1)
    assert blob_path(shard) in str(caught.value)
    assert str(shard) not in registry.blobs
    assert tags(registry) == []
    assert f"sovereign/state/{NAME}" not in registry.tags
    assert claims(registry) == []
    assert registry.uploads == {}

    flip(bundle / blob_path(shard))
    held = sum(len(content) for content in registry.blobs.values())
    pushed = registry.pushed_bytes
    load(bundle)
    total = sum(len(content) for content in registry.blobs.values())
    assert registry.pushed_bytes - pushed <= total - held
    assert COMMIT_ONE in str(tags(registry))


def test_a_small_flipped_bit_is_noticed_too(load: Load, bundle: Path, registry: RegistryDouble) -> None:
    flip(bundle / blob_path(blob_of(bundle, MODEL_ONE, "config.json")), at=10)
    with pytest.raises(DigestMismatch):
        load(bundle)
    assert tags(registry) == []


def test_a_commit_tag_that_points_elsewhere_is_refused_before_any_byte(
    load: Load, bundle: Path, registry: RegistryDouble
) -> None:
    registry.manifests[f"{MODEL_TWO}/{COMMIT_TWO}"] = (b"{}", MANIFEST_TYPE)
    before = dict(registry.tags)
    with pytest.raises(TagConflict):
        load(bundle)
    assert tags(registry) == sorted(before)
    assert registry.tags[f"{MODEL_TWO}/{COMMIT_TWO}"] == before[f"{MODEL_TWO}/{COMMIT_TWO}"]
    assert registry.pushed_bytes == 0


def test_keys_are_asked_for_where_a_signature_is_required(
    load: Load, bundle: Path, registry: RegistryDouble
) -> None:
    with pytest.raises(NotSigned):
        load(bundle, require_signature=True)
    assert registry.seen == []


# -- versions -----------------------------------------------------------------------------------------------


def test_an_older_version_is_refused_unless_wished(
    load: Load, tmp_path: Path, registry: RegistryDouble
) -> None:
    old, new = a_bundle(tmp_path / "1"), a_bundle(tmp_path / "2", version=2)
    load(old)
    load(new)
    before = dict(registry.tags)

    with pytest.raises(OlderVersion):
        load(old)
    assert registry.tags == before

    load(old, allow_downgrade=True)
    load(new)
    with pytest.raises(OlderVersion):
        load(old)


def test_one_version_is_one_bundle(load: Load, tmp_path: Path) -> None:
    load(a_bundle(tmp_path / "1"))
    with pytest.raises(OlderVersion):
        load(a_bundle(tmp_path / "another", width=32))


def test_another_bundle_has_versions_of_its_own(load: Load, tmp_path: Path) -> None:
    load(a_bundle(tmp_path / "1", version=7))
    load(a_bundle(tmp_path / "2", name="another"))


# -- deltas -------------------------------------------------------------------------------------------------


def a_delta(directory: Path, base: Path, version: int = 2) -> Path:
    """What `base` has, under a new version, with one new image; blobs of the base are left out."""
    draft = Draft(directory)
    for repository, commit in ((MODEL_ONE, COMMIT_ONE), (MODEL_TWO, COMMIT_TWO)):
        draft.model(repository, commit, model_files(repository, width=WIDTH))
    # Its layer is a shard of the base, in a repository that the base does not know.
    shard = model_files(MODEL_ONE, width=WIDTH)[SHARD]
    draft.image("sovereign/new", layer=shard)
    draft.finish(version=version, base=index_digest(base))
    kept = documents(directory)
    for path in (directory / "blobs/sha256").iterdir():
        if path.name not in kept and (base / "blobs/sha256" / path.name).exists():
            path.unlink()
    return directory


def test_a_delta_loads_after_its_base_and_mounts_what_it_leaves_out(
    load: Load, bundle: Path, registry: RegistryDouble, tmp_path: Path
) -> None:
    load(bundle)
    pushed = registry.pushed_bytes
    found = load(a_delta(tmp_path / "delta", bundle))
    assert registry.pushed_bytes == pushed
    assert "sovereign/new/v1" in registry.tags
    assert found.mounted >= 1
    assert load(tmp_path / "delta").tags_moved == 0


def test_a_delta_without_its_base_is_refused(
    load: Load, bundle: Path, registry: RegistryDouble, tmp_path: Path
) -> None:
    delta = a_delta(tmp_path / "delta", bundle)
    with pytest.raises(WrongBase):
        load(delta)
    load(a_bundle(tmp_path / "other", width=32))
    before = dict(registry.tags)
    with pytest.raises(WrongBase):
        load(delta)
    assert registry.tags == before
    assert claims(registry) == []


def test_a_delta_takes_what_it_lacks_from_a_base_on_disk(
    load: Load, bundle: Path, registry: RegistryDouble, tmp_path: Path
) -> None:
    delta = a_delta(tmp_path / "delta", bundle)
    with pytest.raises(WrongBase):
        load(delta, base=Directory(a_bundle(tmp_path / "other", width=32)))
    assert registry.seen == []
    load(delta, base=Directory(bundle))
    assert "sovereign/new/v1" in registry.tags


# -- a registry that stumbles -------------------------------------------------------------------------------


def test_a_dropped_upload_goes_on_where_the_registry_stands(
    load: Load, bundle: Path, registry: RegistryDouble
) -> None:
    registry.next("PATCH uploads", drop_after(100_000))
    found = load(bundle, parallel=1)
    large = sum(
        path.stat().st_size
        for path in (bundle / "blobs/sha256").iterdir()
        if path.stat().st_size > 1024 * 1024
    )
    assert registry.pushed_bytes == large, "bytes that the registry had acknowledged were sent again"
    assert found.sent > 0


def test_a_registry_that_wants_small_pieces_gets_them(
    load: Load, bundle: Path, registry: RegistryDouble
) -> None:
    registry.largest_patch = 1024 * 1024
    load(bundle, chunk=8 * 1024 * 1024)
    assert (MODEL_ONE, str(blob_of(bundle, MODEL_ONE, SHARD))) in registry.linked


def test_a_foreign_location_is_refused(load: Load, bundle: Path, registry: RegistryDouble) -> None:
    registry.next("POST uploads", *[elsewhere] * 50)
    with pytest.raises(UnsafeRedirect):
        load(bundle)
    assert tags(registry) == []


def test_a_redirect_is_not_followed(load: Load, bundle: Path, registry: RegistryDouble) -> None:
    away = status(307, Location="http://169.254.169.254/latest/meta-data/")
    registry.next("PATCH uploads", *[away] * 500)
    with pytest.raises(RegistryUnavailable):
        load(bundle)
    assert tags(registry) == []


def test_a_login_that_ends_in_the_middle_is_named(load: Load, bundle: Path, registry: RegistryDouble) -> None:
    denied = status(401, WWW_Authenticate='Basic realm="double"')
    registry.next("PATCH uploads", *[denied] * 500)
    with pytest.raises(RegistryForbidden):
        load(bundle)
    assert tags(registry) == []


def test_a_blob_that_is_collected_before_its_manifest_comes_is_brought_again(
    load: Load, bundle: Path, registry: RegistryDouble
) -> None:
    shard = str(blob_of(bundle, MODEL_ONE, SHARD))

    def collect(handler: _Handler) -> bool:
        registry.blobs.pop(shard, None)
        registry.linked -= {(repository, shard) for repository in (MODEL_ONE, MODEL_TWO)}
        return False

    struck = []

    def collect_once(handler: _Handler) -> bool:
        if not struck and handler.repository == MODEL_ONE and handler.rest.startswith("sha256:"):
            struck.append(handler.rest)
            return collect(handler)
        return False

    registry.next("PUT manifests", *[collect_once] * 100)
    load(bundle)
    assert struck
    assert {(MODEL_ONE, shard), (MODEL_TWO, shard)} <= registry.linked
    assert shard in registry.blobs


def test_a_blob_of_another_length_in_the_registry_is_named(
    load: Load, bundle: Path, registry: RegistryDouble
) -> None:
    load(bundle)
    shard = str(blob_of(bundle, MODEL_ONE, SHARD))
    registry.blobs[shard] = registry.blobs[shard][:-1]
    with pytest.raises(RegistryBlobCorrupt) as caught:
        load(bundle)
    assert "registry verify --repair" in str(caught.value)


def test_a_manifest_that_went_bad_in_the_registry_is_named(
    load: Load, bundle: Path, registry: RegistryDouble
) -> None:
    load(bundle)
    name = f"{MODEL_ONE}/{a_root(bundle, MODEL_ONE).descriptor.digest}"
    content, media_type = registry.manifests[name]
    registry.manifests[name] = (content.replace(b"tiny", b"tinx"), media_type)
    with pytest.raises(DigestMismatch):
        load(bundle)


def test_of_parts_the_one_to_copy_again_is_named(
    load: Load, bundle: Path, registry: RegistryDouble, tmp_path: Path
) -> None:
    written = split(bundle, tmp_path / "parts", 1024 * 1024)
    part = sorted((tmp_path / "parts").glob("*.part-*"))[2]
    flip(part, at=500_000)
    with pytest.raises(DigestMismatch, match=f"{part.name}.* copy this part again"):
        load(written.path)
    assert tags(registry) == []
    flip(part, at=500_000)
    load(written.path)
    assert len(tags(registry)) == 6
