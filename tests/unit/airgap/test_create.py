# SPDX-License-Identifier: Apache-2.0
"""Creating a bundle of models and files: what is in it, once, and the same every time."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from sovereign_airgap.bundle.bom import BOM_TITLE
from sovereign_airgap.bundle.graph import needed
from sovereign_airgap.bundle.index import MODEL_NOTE, Kind
from sovereign_airgap.bundle.layout import CONTENTS, Directory, read_blob
from sovereign_airgap.bundle.opening import open_bundle
from sovereign_airgap.bundle.spec import BundleSpec, load_spec
from sovereign_airgap.bundle.unfinished import Unfinished
from sovereign_airgap.bundle.verify import verify
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import (
    BundleExists,
    DiskFailed,
    InvalidSpec,
    NothingServable,
    RevisionNotFound,
    UnsafeFileName,
)
from sovereign_airgap.facts import ARTIFACT_TYPE
from sovereign_airgap.hub_stream import HubStream
from sovereign_airgap.manifest import Descriptor, Layer, ModelManifest, fallback_tag
from sovereign_airgap.mirror import MirrorOptions, mirror
from sovereign_airgap.progress import Progress
from sovereign_airgap.reference import HubReference, OciReference
from sovereign_airgap.signing.keys import PrivateKey
from sovereign_airgap.wire import StreamRestarted
from tests.unit.airgap.conftest import QUICK
from tests.unit.airgap.creations import SHARED, TWIN, Connected, Opened, digest_of
from tests.unit.airgap.models import REPO, TAKEN, write


def layer_descriptor(layer: Layer) -> Descriptor:
    return Descriptor(layer.media_type, layer.digest, layer.size)


def test_two_models_arrive_whole_and_what_they_share_lies_there_once(
    side: Connected, models: dict[str, bytes]
) -> None:
    result = side.create()
    opened = Opened(result.path)
    opened.require_whole()
    roots = opened.index.of_kind(Kind.MODEL)
    assert [root.repository for root in roots] == ["models/org/tiny-moe", "models/org/tiny-twin"]
    assert [root.tag for root in roots] == [side.hub.commit(REPO), side.hub.commit(TWIN)]
    manifest = ModelManifest.parse(opened.blob(roots[0].descriptor))
    assert [layer.path for layer in manifest.layers] == list(TAKEN)
    for layer in manifest.layers:
        assert opened.blob(layer_descriptor(layer)) == models[layer.path]
    assert digest_of(models[SHARED]) in opened.blobs
    # Two models of two shards each: three downloads.
    assert len(side.downloads()) == len(set(side.downloads())) == 3
    assert not side.unfinished.exists()
    now = side.progress.snapshot()
    assert (now.phase, now.bytes_done, now.files_done) == ("done", now.bytes_total, now.files_total)


def test_what_is_created_verifies_and_holds_nothing_else(side: Connected) -> None:
    result = side.create()
    found = verify(Directory(result.path), [], 1, Progress())
    assert (found.index_digest, found.blobs, found.size) == (result.index_digest, result.blobs, result.size)
    assert result.index_digest == Digest.of((result.path / "index.json").read_bytes())
    reader = Directory(result.path)
    wanted = needed(Opened(result.path).index, lambda each: read_blob(reader, each.digest, each.size))
    assert {str(digest) for digest in wanted} == Opened(result.path).blobs
    assert sum(wanted.values()) == result.size


def test_a_model_in_a_bundle_is_the_artifact_that_a_mirror_makes(side: Connected) -> None:
    result = side.create()
    source = HubReference(REPO, side.hub.commit(REPO))
    options = MirrorOptions(side.options.access, side.hub.endpoint, patience=QUICK)
    mirrored = mirror(source, OciReference(side.registry.host), options, Progress())
    opened = Opened(result.path)
    root = opened.root(Kind.MODEL, f"models/org/tiny-moe:{mirrored.tag}")
    assert root.descriptor.digest == mirrored.digest
    tag = fallback_tag(mirrored.digest)
    referrers = opened.root(Kind.REFERRERS, f"models/org/tiny-moe:{tag}")
    content, _ = side.registry.manifests[tag]
    assert opened.blob(referrers.descriptor) == content
    assert ARTIFACT_TYPE in content.decode()


def test_a_bundle_of_a_registry_is_the_bundle_of_the_hub(side: Connected) -> None:
    options = MirrorOptions(side.options.access, side.hub.endpoint, patience=QUICK)
    sources = []
    for repo in (REPO, TWIN):
        source = HubReference(repo, side.hub.commit(repo))
        target = OciReference(side.registry.host)
        sources.append(mirror(source, target, options, Progress()).reference)
    side.hub.requests.clear()
    of_registry = side.create(spec=side.spec(models=[{"source": str(source)} for source in sources]))
    assert not side.hub.requests
    of_hub = side.create(out=side.folder / "hub-bundle")
    assert of_registry.index_digest == of_hub.index_digest
    assert Opened(of_registry.path).blobs == Opened(of_hub.path).blobs


def test_an_artifact_is_named_by_the_tag_of_its_commit_and_goes_under_a_name_of_ones_own(
    side: Connected,
) -> None:
    options = MirrorOptions(side.options.access, side.hub.endpoint, patience=QUICK)
    target = OciReference(side.registry.host, "elsewhere/tiny")
    mirrored = mirror(HubReference(REPO, side.hub.commit(REPO)), target, options, Progress())
    named = f"oci://{side.registry.host}/elsewhere/tiny:{mirrored.tag}"
    result = side.create(spec=side.spec(models=[{"source": named, "repository": "models/mine"}]))
    (root,) = Opened(result.path).index.of_kind(Kind.MODEL)
    assert root.name == f"models/mine:{mirrored.tag}"
    # Without a name it is called as its commit of the hub would be.
    result = side.create(side.folder / "other", side.spec(models=[{"source": named}]))
    (root,) = Opened(result.path).index.of_kind(Kind.MODEL)
    assert root.repository == "models/org/tiny-moe"


def test_the_same_input_gives_the_same_bundle_whatever_was_there_before(side: Connected) -> None:
    files = side.folder / "files"
    write(files, {"a.txt": b"a", "b/c.txt": b"c"})
    spec = side.spec(files=[{"path": str(files)}], charts=[{"path": "charts/sovereign-crds"}])
    first = side.create(spec=spec)
    turned = side.spec(
        models=list(reversed([{"source": side.source(repo)} for repo in (REPO, TWIN)])),
        charts=[{"path": "charts/sovereign-crds"}],
        files=[{"path": str(files)}],
    )
    second = side.create(side.folder / "again", turned, parallel=1)
    assert first.index_digest == second.index_digest
    for entry in Directory(first.path).entries():
        assert (first.path / entry.path).read_bytes() == (second.path / entry.path).read_bytes(), entry.path


def test_licences_lie_where_people_look_for_them(side: Connected, models: dict[str, bytes]) -> None:
    opened = Opened(side.create().path)
    root = opened.root(Kind.FILE, "licenses/models/org/tiny-moe/LICENSE")
    assert opened.blob(root.descriptor) == models["LICENSE"]
    assert dict(root.notes) == {MODEL_NOTE: f"models/org/tiny-moe:{side.hub.commit(REPO)}"}


def test_two_commits_of_one_model_keep_their_licences_apart(side: Connected, tmp_path: Path) -> None:
    names = [{"source": side.source(repo), "repository": "models/one"} for repo in (REPO, TWIN)]
    opened = Opened(side.create(spec=side.spec(models=names)).path)
    titles = [root.title for root in opened.index.of_kind(Kind.FILE) if root.title.startswith("licenses/")]
    commits = sorted(side.hub.commit(repo) for repo in (REPO, TWIN))
    assert titles == [f"licenses/models/one/{commit}/LICENSE" for commit in commits]


def test_contents_are_told_to_people_in_ascii(side: Connected) -> None:
    result = side.create()
    told = (result.path / CONTENTS).read_text(encoding="ascii")
    assert f"models/org/tiny-moe:{side.hub.commit(REPO)}" in told
    assert f"hf://Org/Tiny-Twin@{side.hub.commit(TWIN)}" in told
    assert "licence   Apache-2.0" in told
    assert "MixtralForCausalLM, bfloat16, 2 layers, 2 experts, 1 per token" in told
    root = Opened(result.path).root(Kind.FILE, CONTENTS)
    assert Opened(result.path).blob(root.descriptor).decode() == told


def test_what_stays_behind_is_told(side: Connected) -> None:
    notes = side.create().notes
    assert "left out: models/org/tiny-moe: pytorch_model.bin may be a pickle, which runs code" in "".join(
        notes
    )
    assert len(notes) == 4


RESOURCE = """apiVersion: sovereign.dev/v1alpha1
kind: SovereignModel
metadata: {{name: tiny}}
spec:
  source:
    huggingFace: {{repo: {repo}, revision: "{revision}"{more}}}
"""


def test_a_sovereign_model_travels_with_its_model(side: Connected) -> None:
    path = side.folder / "tiny.yaml"
    path.write_text(RESOURCE.format(repo=REPO, revision=side.hub.commit(REPO), more=""))
    opened = Opened(
        side.create(spec=side.spec(models=[{"source": side.source(), "manifest": str(path)}])).path
    )
    root = opened.root(Kind.FILE, "manifests/tiny.yaml")
    assert opened.blob(root.descriptor) == path.read_bytes()
    assert dict(root.notes)[MODEL_NOTE] == opened.index.of_kind(Kind.MODEL)[0].name


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (RESOURCE.format(repo=REPO, revision="0" * 40, more=""), "to serve hf://Org/Tiny-MoE@"),
        (RESOURCE.format(repo="Org/Other", revision="REVISION", more=""), "found hf://org/other@"),
        (RESOURCE.format(repo=REPO, revision="REVISION", more=", exclude: ['*.md']"), "the same selection"),
        ("kind: SovereignModel\nmetadata: {name: x}\n", "found no source"),
        ("kind: Pod\nmetadata: {name: x}\n", "found 'Pod x'"),
        ("kind: SovereignModel\nmetadata: {name: ../x}\n", "a SovereignModel with a name"),
        ("a: *b", "one SovereignModel in YAML"),
    ],
)
def test_a_sovereign_model_of_another_model_is_refused_before_any_byte(
    side: Connected, text: str, told: str
) -> None:
    path = side.folder / "tiny.yaml"
    path.write_text(text.replace("REVISION", side.hub.commit(REPO)))
    with pytest.raises(InvalidSpec, match=told):
        side.create(spec=side.spec(models=[{"source": side.source(), "manifest": str(path)}]))
    assert not side.downloads()
    assert not side.out.exists()


def test_nothing_is_overwritten(side: Connected) -> None:
    side.out.mkdir()
    with pytest.raises(BundleExists, match="Expected nothing at"):
        side.create()
    assert not side.unfinished.exists()
    side.out.rmdir()
    side.out.symlink_to("nowhere")
    with pytest.raises(BundleExists):
        side.create()
    assert not side.hub.requests


def test_one_run_at_a_time_makes_a_bundle(side: Connected, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[DiskFailed] = []
    real = Unfinished.begin

    def begin(to: Unfinished) -> None:
        if threading.current_thread() is threading.main_thread():
            other = threading.Thread(target=second)
            other.start()
            other.join()
        real(to)

    def second() -> None:
        with pytest.raises(DiskFailed, match="Another run is writing") as error:
            side.create()
        told.append(error.value)

    monkeypatch.setattr(Unfinished, "begin", begin)
    side.create()
    assert len(told) == 1


@pytest.mark.parametrize(
    "doubled",
    [
        {"models": [0, 0]},
        {"files": [{"path": "a.txt", "title": "x"}, {"path": "b.txt", "title": "x"}]},
        {"charts": [{"path": "charts/sovereign-crds"}, {"path": "charts/sovereign-crds"}]},
    ],
)
def test_a_name_that_occurs_twice_is_refused_before_any_byte(
    side: Connected, doubled: dict[str, list[object]]
) -> None:
    write(side.folder, {"a.txt": b"a", "b.txt": b"b"})
    if "models" in doubled:
        doubled = {"models": [{"source": side.source()}, {"source": side.source()}]}
    spec = side.spec(**{"models": [], **doubled}).below(side.folder if "files" in doubled else Path())
    with pytest.raises(InvalidSpec, match="every name once"):
        side.create(spec=spec)
    assert not side.downloads()


def test_titles_that_are_one_file_somewhere_are_refused(side: Connected) -> None:
    write(side.folder, {"a.txt": b"a"})
    files = [{"path": str(side.folder / "a.txt"), "title": title} for title in ("x/A", "X/a")]
    with pytest.raises(UnsafeFileName, match="one file where names ignore case"):
        side.create(spec=side.spec(models=[], files=files))
    assert not side.out.exists()


def test_a_reference_that_is_wrong_ends_the_run_before_any_byte(side: Connected) -> None:
    models = [{"source": side.source()}, {"source": f"hf://{TWIN}@{'0' * 40}"}]
    with pytest.raises(RevisionNotFound):
        side.create(spec=side.spec(models=models))
    excluded = [{"source": side.source()}, {"source": side.source(TWIN), "exclude": ["*.safetensors*"]}]
    with pytest.raises(NothingServable):
        side.create(spec=side.spec(models=excluded))
    assert not side.downloads()
    assert not side.out.exists()


def test_files_and_folders_come_under_their_titles(side: Connected) -> None:
    write(
        side.folder,
        {
            "w/a-1.whl": b"wheel",
            "w/deep/b.txt": b"b",
            "w/.hidden": b"x",
            "crd.yaml": b"kind: X",
            "c.bin": b"",
        },
    )
    spec = load_spec_of(side, "files: [{path: w}, {path: crd.yaml, title: crds/x.yaml}, {path: c.bin}]")
    opened = Opened(side.create(spec=spec).path)
    files = {root.title: opened.blob(root.descriptor) for root in opened.index.of_kind(Kind.FILE)}
    assert files.pop(BOM_TITLE) and files.pop(CONTENTS)
    assert files == {
        "w/a-1.whl": b"wheel",
        "w/deep/b.txt": b"b",
        "crds/x.yaml": b"kind: X",
        "files/c.bin": b"",
    }


def load_spec_of(side: Connected, text: str) -> BundleSpec:
    path = side.folder / "spec.yaml"
    path.write_text(f"name: site\n{text}\n")
    return load_spec(path)


def test_what_is_no_plain_file_is_not_taken(side: Connected) -> None:
    (side.folder / "empty").mkdir()
    with pytest.raises(InvalidSpec, match="found none"):
        side.create(spec=load_spec_of(side, "files: [{path: empty}]"))
    with pytest.raises(InvalidSpec, match="plain file"):
        side.create(spec=side.spec(models=[], files=[{"path": "/dev/null"}]))
    with pytest.raises(DiskFailed, match="No such file"):
        side.create(spec=load_spec_of(side, "files: [{path: nowhere}]"))
    write(side.folder, {"CON": b"x"})
    with pytest.raises(InvalidSpec, match="device on Windows"):
        side.create(spec=load_spec_of(side, "files: [{path: CON}]"))


def test_a_bundle_is_signed_before_it_has_its_name(side: Connected) -> None:
    key = PrivateKey.generate("ed25519")
    result = side.create(key=key)
    found = verify(open_bundle(result.path), [key.public], 1, Progress())
    assert found.signed_by == (key.key_id,)


def test_parts_hold_a_signed_bundle_and_need_no_second_copy(side: Connected) -> None:
    key = PrivateKey.generate("ed25519")
    whole = side.create(side.folder / "whole")
    result = side.create(part_size=64 * 1024, key=key)
    names = sorted(path.name for path in result.path.iterdir())
    assert names[0] == "site-1.part-00001" and names[-1] == "site-1.parts.json"
    assert (result.index_digest, result.blobs, result.size) == (whole.index_digest, whole.blobs, whole.size)
    assert verify(open_bundle(result.path), [key.public], 1, Progress()).signed_by == (key.key_id,)
    assert not side.unfinished.exists()


def test_a_server_that_begins_again_is_hashed_again_from_the_start(
    side: Connected, monkeypatch: pytest.MonkeyPatch, models: dict[str, bytes]
) -> None:
    real = HubStream.readinto
    restarted: list[int] = []

    def readinto(stream: HubStream, view: memoryview) -> int:
        if stream.position and not restarted:
            restarted.append(stream.position)
            stream.close()
            stream.position = 0
            raise StreamRestarted
        return real(stream, view[:1000])

    monkeypatch.setattr(HubStream, "readinto", readinto)
    Opened(side.create().path).require_whole()
    assert restarted
    now = side.progress.snapshot()
    assert now.bytes_done == now.bytes_total
