# SPDX-License-Identifier: Apache-2.0
"""A registry's disk: what went bad is found and named, what is whole is never touched."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sovereign_airgap import oci, registry_repair, registry_verify
from sovereign_airgap.bundle.index import Kind as RootKind
from sovereign_airgap.bundle.layout import blob_path
from sovereign_airgap.cli import run
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import DiskFailed
from sovereign_airgap.manifest import Descriptor
from sovereign_airgap.progress import Progress
from sovereign_airgap.registry_storage import Storage
from sovereign_airgap.registry_verify import Finding, Kind, Verified
from tests.unit.airgap.bundles import COMMIT_ONE, COMMIT_TWO, MODEL_ONE, MODEL_TWO, a_bundle, index_of


def a_storage(folder: Path, bundle: Path) -> Storage:
    """What the registry's disk would hold after that bundle was loaded."""
    root = folder / "docker/registry/v2"
    (root / "repositories").mkdir(parents=True)

    def link(path: Path, digest: Digest) -> None:
        path.mkdir(parents=True, exist_ok=True)
        (path / "link").write_text(str(digest))

    def store(digest: Digest) -> bytes:
        content = (bundle / blob_path(digest)).read_bytes()
        place = root / "blobs/sha256" / digest.hex[:2] / digest.hex
        place.mkdir(parents=True, exist_ok=True)
        (place / "data").write_bytes(content)
        return content

    def push(repository: Path, descriptor: Descriptor) -> None:
        content = store(descriptor.digest)
        link(repository / "_manifests/revisions/sha256" / descriptor.digest.hex, descriptor.digest)
        for child in oci.read(content, descriptor.media_type).children:
            if child.media_type in oci.DOCUMENT_TYPES:
                push(repository, child)
            else:
                store(child.digest)
                link(repository / "_layers/sha256" / child.digest.hex, child.digest)

    for each in index_of(bundle).roots:
        if each.kind is not RootKind.FILE:
            repository = root / "repositories" / each.repository
            push(repository, each.descriptor)
            tag = repository / "_manifests/tags" / each.tag
            link(tag / "current", each.descriptor.digest)
            link(tag / "index/sha256" / each.descriptor.digest.hex, each.descriptor.digest)
    return Storage(folder)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return a_bundle(tmp_path / "bundle")


@pytest.fixture
def storage(tmp_path: Path, bundle: Path) -> Storage:
    return a_storage(tmp_path / "registry", bundle)


def verify(storage: Storage, settled: float = 0) -> Verified:
    return registry_verify.verify(storage, Progress(), settled=settled)


def layer_of(bundle: Path, storage: Storage, repository: str) -> Digest:
    """The largest blob of a model, which the other model has too."""
    [root] = [each for each in index_of(bundle).of_kind(RootKind.MODEL) if each.repository == repository]
    content = (storage.blob_folder(root.descriptor.digest) / "data").read_bytes()
    return oci.read(content, root.descriptor.media_type).children[-3].digest


def model_of(bundle: Path, repository: str) -> Digest:
    [root] = [each for each in index_of(bundle).of_kind(RootKind.MODEL) if each.repository == repository]
    return root.descriptor.digest


def everything(storage: Storage) -> dict[str, bytes]:
    return {
        path.relative_to(storage.root).as_posix(): path.read_bytes()
        for path in storage.root.rglob("*")
        if path.is_file()
    }


def only(found: Verified) -> Finding:
    [finding] = found.findings
    return finding


def test_a_whole_registry_has_no_findings(storage: Storage) -> None:
    found = verify(storage)
    assert found.findings == ()
    assert found.blobs == len(list(storage.blobs()))
    assert found.size == sum(blob.size for blob in storage.blobs())
    assert found.repositories == 4


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [flip, shorten, lengthen, empty])
def test_a_damaged_blob_is_named_with_all_who_use_it_and_removed_with_its_links(
    storage: Storage, bundle: Path, spoil: Callable[[Path], None]
) -> None:
    shard = layer_of(bundle, storage, MODEL_ONE)
    before = everything(storage)
    spoil(storage.blob_folder(shard) / "data")

    found = verify(storage)

    finding = only(found)
    assert (finding.kind, finding.digest) == (Kind.DAMAGED, shard)
    assert set(finding.used_by) == {f"{MODEL_ONE}:{COMMIT_ONE}", f"{MODEL_TWO}:{COMMIT_TWO}"}

    repaired = registry_repair.repair(storage, found)

    gone = before.keys() - everything(storage).keys()
    assert gone == {name for name in before if f"{shard.hex}/" in name}
    assert {name: body for name, body in before.items() if name not in gone} == everything(storage)
    assert set(repaired.to_bring) == set(finding.used_by)
    again = verify(storage)
    assert {each.kind for each in again.findings} == {Kind.MISSING}
    assert {each.digest for each in again.findings} == {shard}


def test_a_damaged_manifest_goes_with_its_tag(storage: Storage, bundle: Path) -> None:
    manifest = model_of(bundle, MODEL_ONE)
    flip(storage.blob_folder(manifest) / "data")
    found = verify(storage)
    assert only(found).digest == manifest

    registry_repair.repair(storage, found)

    assert not storage.tag_folder(MODEL_ONE, COMMIT_ONE).exists()
    assert storage.tag_folder(MODEL_TWO, COMMIT_TWO).exists()
    assert verify(storage).findings == ()


def test_a_missing_layer_and_a_missing_link_are_told_and_nothing_is_removed(
    storage: Storage, bundle: Path
) -> None:
    shard = layer_of(bundle, storage, MODEL_ONE)
    link = storage.root / "repositories" / MODEL_ONE / "_layers/sha256" / shard.hex / "link"
    link.unlink()
    found = verify(storage)
    finding = only(found)
    assert (finding.kind, finding.used_by) == (Kind.MISSING, (f"{MODEL_ONE}:{COMMIT_ONE}",))
    before = everything(storage)
    registry_repair.repair(storage, found)
    assert everything(storage) == before


def test_links_to_nothing_are_removed(storage: Storage, bundle: Path) -> None:
    manifest, shard = model_of(bundle, MODEL_ONE), layer_of(bundle, storage, MODEL_ONE)
    (storage.blob_folder(shard) / "data").unlink()
    (storage.blob_folder(manifest) / "data").unlink()
    found = verify(storage)
    dangling = [each for each in found.findings if each.kind is Kind.DANGLING]
    # Two repositories' layer links, one revision, one tag.
    assert len(dangling) == 4

    registry_repair.repair(storage, found)

    assert not storage.tag_folder(MODEL_ONE, COMMIT_ONE).exists()
    assert {each.kind for each in verify(storage).findings} == {Kind.MISSING}


def test_a_link_with_another_digest_is_no_way_to_another_blob(storage: Storage, bundle: Path) -> None:
    shard, manifest = layer_of(bundle, storage, MODEL_ONE), model_of(bundle, MODEL_ONE)
    link = storage.root / "repositories" / MODEL_TWO / "_layers/sha256" / shard.hex / "link"
    link.write_text(str(manifest))
    found = verify(storage)
    assert {each.kind for each in found.findings} == {Kind.DANGLING, Kind.MISSING}
    registry_repair.repair(storage, found)
    assert not link.exists()


@pytest.mark.parametrize("text", ["", "sha256:", "sha512:00", "\0" * 71, "x" * 10_000])
def test_a_tag_that_holds_no_digest_is_removed(storage: Storage, text: str) -> None:
    (storage.tag_folder(MODEL_ONE, COMMIT_ONE) / "current/link").write_text(text)
    found = verify(storage)
    assert only(found).kind is Kind.DANGLING
    registry_repair.repair(storage, found)
    assert verify(storage).findings == ()


def test_what_may_be_half_of_a_push_is_left_alone(storage: Storage) -> None:
    link = storage.tag_folder(MODEL_ONE, COMMIT_ONE) / "current/link"
    link.unlink()
    assert verify(storage, settled=60).findings == ()
    old = time.time() - 120
    os.utime(link.parent, (old, old))
    assert only(verify(storage, settled=60)).kind is Kind.DANGLING


def test_what_came_since_it_was_found_is_not_removed(storage: Storage, bundle: Path) -> None:
    shard = layer_of(bundle, storage, MODEL_ONE)
    data = storage.blob_folder(shard) / "data"
    whole = data.read_bytes()
    flip(data)
    link = storage.tag_folder(MODEL_ONE, COMMIT_ONE) / "current/link"
    named = link.read_bytes()
    link.write_bytes(b"")
    found = verify(storage)
    data.write_bytes(whole)
    link.write_bytes(named)
    before = everything(storage)

    assert registry_repair.repair(storage, found).removed == ()
    assert everything(storage) == before


def test_what_the_registry_leaves_behind_is_no_finding(storage: Storage) -> None:
    repository = storage.root / "repositories" / MODEL_ONE
    for folder in (
        repository / "_uploads/0000/hashstates/sha256",
        repository / "_layers/sha256" / ("0" * 64),
        repository / "_manifests/revisions/sha256" / ("0" * 64),
        storage.root / "blobs/sha256/00" / ("0" * 64),
    ):
        folder.mkdir(parents=True)
    (repository / "_uploads/0000/data").write_bytes(b"half")
    assert verify(storage).findings == ()


def test_a_path_that_looks_like_markup_is_shown_as_it_is(
    storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    (storage.root / "blobs/sha256/a[/b]").mkdir(parents=True)
    assert run(["registry", "verify", str(storage.folder), "--progress", "none"]) == 3
    assert "RegistryDamaged" in capsys.readouterr().err


def test_strangers_among_the_blobs_are_told_and_left(storage: Storage) -> None:
    blobs = storage.root / "blobs/sha256"
    wrong_home = blobs / "00" / ("1" * 64)
    linked = blobs / "22" / ("2" * 64)
    named = blobs / "33" / "lost+found"
    for folder in (wrong_home, linked, named):
        folder.mkdir(parents=True)
    (wrong_home / "data").write_bytes(b"x")
    (linked / "data").symlink_to("/etc/hostname")
    found = verify(storage)
    assert [each.kind for each in found.findings] == [Kind.STRANGER] * 3
    before = everything(storage)
    assert registry_repair.repair(storage, found).removed == ()
    assert everything(storage) == before


def test_a_manifest_that_is_none_is_told(storage: Storage) -> None:
    content = b'{"schemaVersion": 2, "layers": 7}'
    digest = Digest.of(content)
    storage.blob_folder(digest).mkdir(parents=True)
    (storage.blob_folder(digest) / "data").write_bytes(content)
    link = storage.root / "repositories" / MODEL_ONE / "_manifests/revisions/sha256" / digest.hex
    link.mkdir()
    (link / "link").write_text(str(digest))
    assert only(verify(storage)).kind is Kind.MALFORMED


def test_no_link_leads_out_of_the_storage(storage: Storage, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "_layers").mkdir(parents=True)
    (storage.root / "repositories/elsewhere").symlink_to(outside)
    assert verify(storage).repositories == 4
    with pytest.raises(ValueError, match="is not in"):
        storage.remove(outside)


def test_a_folder_that_is_no_registry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DiskFailed, match="docker/registry/v2"):
        Storage(tmp_path)


def test_the_command_ends_with_3_until_the_registry_is_whole(
    storage: Storage, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "result"
    arguments = [
        "registry",
        "verify",
        str(storage.folder),
        "--progress",
        "none",
        "--result-file",
        str(result),
    ]
    assert run(arguments) == 0
    shard = layer_of(bundle, storage, MODEL_ONE)
    data = storage.blob_folder(shard) / "data"
    whole = data.read_bytes()
    flip(data)
    capsys.readouterr()

    assert run([*arguments, "--json"]) == 3
    told = capsys.readouterr()
    document = json.loads(told.out)
    assert [each["digest"] for each in document["findings"]] == [str(shard)]
    assert "RegistryDamaged" in told.err

    assert run([*arguments, "--repair"]) == 3
    told = capsys.readouterr()
    assert f"removed blobs/sha256/{shard.hex[:2]}/{shard.hex}" in told.out
    assert f"{MODEL_ONE}:{COMMIT_ONE}" in json.loads(result.read_text())["message"]
    assert not data.exists()
    assert run(arguments) == 3

    for repository in (MODEL_ONE, MODEL_TWO):
        link = storage.root / "repositories" / repository / "_layers/sha256" / shard.hex
        link.mkdir()
        (link / "link").write_text(str(shard))
    data.parent.mkdir()
    data.write_bytes(whole)
    assert run(arguments) == 0
