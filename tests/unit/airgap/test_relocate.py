# SPDX-License-Identifier: Apache-2.0
"""What a site applies after a load: every reference is here and by digest, and no edit is lost."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import yaml

from sovereign_airgap.bundle import relocate, site_folder
from sovereign_airgap.bundle.cargo import survey
from sovereign_airgap.bundle.chart_values import values_of
from sovereign_airgap.bundle.image_names import Images, RelocatedImage, image_reference
from sovereign_airgap.bundle.index import FILE_TYPE, MODEL_NOTE, ORIGIN_NOTE, Kind, Root
from sovereign_airgap.bundle.items import ChartItem, FileItem, ImageItem
from sovereign_airgap.bundle.layout import INDEX, Directory
from sovereign_airgap.bundle.load import Loaded, Placed
from sovereign_airgap.cli import run
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import BundleDefective, DiskFailed
from sovereign_airgap.manifest import Descriptor
from sovereign_airgap.reference import OciReference
from sovereign_operator.api import SovereignModel
from tests.unit.airgap.bundles import (
    CHART_CONFIG_TYPE,
    CHART_LAYER_TYPE,
    COMMIT_ONE,
    MODEL_ONE,
    Draft,
    a_bundle,
)
from tests.unit.airgap.registry_double import RegistryDouble

SITE = OciReference("registry.site:5000", "team")
INDEX_DIGEST = Digest.of(b"the index of all platforms")

A_MANIFEST = """
apiVersion: sovereign.dev/v1alpha1
kind: SovereignModel
metadata: {name: tiny, namespace: chat, uid: 0000-1, resourceVersion: "17"}
spec:
  source:
    huggingFace: {repo: org/tiny-one, revision: "1111111111111111111111111111111111111111"}
  serving:
    image: ghcr.io/acme/sovereign-serving:v1
    engineArgs: {max_num_seqs: "8", rope_theta: "1e6", enforce_eager: "yes"}
  verification: {keysSecretRef: {name: vendor-keys}}
status: {observedGeneration: 3}
"""


def an_image(draft: Draft, origin: str) -> Root:
    """An image whose origin names the index that it was taken from."""
    repository, _, tag = origin.partition("/")[2].rpartition(":")
    root = draft.image(repository, tag, layer=origin.encode())
    notes = ((ORIGIN_NOTE, f"{origin}@{INDEX_DIGEST}"),)
    draft.roots[-1] = root = Root(Kind.IMAGE, root.descriptor, repository, tag, notes=notes)
    draft.items[-1] = ImageItem(root, notes[0][1], "linux/amd64", 7)
    return root


def a_chart(draft: Draft, name: str, values: str) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path, text in ((f"{name}/Chart.yaml", f"name: {name}\n"), (f"{name}/values.yaml", values)):
            member = tarfile.TarInfo(path)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    manifest = draft.manifest(
        draft.blob(json.dumps({"name": name}).encode(), CHART_CONFIG_TYPE),
        [draft.blob(packed.getvalue(), CHART_LAYER_TYPE)],
    )
    root = draft.root(Kind.CHART, manifest, f"charts/{name}", "1.2.3")
    draft.items.append(ChartItem(root, name, "1.2.3", "", manifest.size))


def a_draft(directory: Path) -> Draft:
    draft = Draft(directory)
    for role in ("operator", "airgap", "registry", "coredns", "serving"):
        an_image(draft, f"ghcr.io/acme/sovereign-{role}:v1")
    an_image(draft, "quay.io/kuberay/operator:v1.7.0")
    a_chart(draft, "sovereign-operator", "images: {}\n")
    a_chart(draft, "sovereign-crds", "{}\n")
    draft.model(MODEL_ONE, COMMIT_ONE, {"config.json": b"{}"})
    return draft


def loaded(directory: Path, target: OciReference = SITE) -> Loaded:
    reader = Directory(directory)
    cargo = survey(reader, (directory / INDEX).read_bytes())
    placed = tuple(
        Placed(
            root,
            OciReference(
                target.host, f"{target.repository}/{root.repository}", digest=root.descriptor.digest
            ),
        )
        for root in cargo.index.roots
        if root.kind is not Kind.FILE
    )
    return Loaded(target, cargo, placed, (), 0, 0, 0, 0, 0)


def relocated(directory: Path, wishes: relocate.Wishes | None = None) -> relocate.Relocation:
    found = loaded(directory)

    def fetch(root: Root, blob: Descriptor, limit: int) -> bytes:
        return found.cargo.stock.read(blob)

    return relocate.relocate(found, wishes or relocate.Wishes(), fetch)


def read(relocation: relocate.Relocation, path: str) -> dict[str, object]:
    document: dict[str, object] = yaml.safe_load(relocation.files[path])
    return document


def digest_of(directory: Path, repository: str) -> Digest:
    index = survey(Directory(directory), (directory / INDEX).read_bytes()).index
    return next(root.descriptor.digest for root in index.roots if root.repository == repository)


# -- charts -------------------------------------------------------------------------------------------------


def test_the_operators_chart_gets_its_images_by_digest(tmp_path: Path) -> None:
    directory = a_draft(tmp_path / "b").finish()
    values = read(relocated(directory), "values/sovereign-operator.yaml")
    names = {role: f"acme/sovereign-{role}" for role in ("operator", "airgap", "registry", "coredns")}
    assert values == {
        "images": {
            role: f"registry.site:5000/team/{name}@{digest_of(directory, name)}"
            for role, name in names.items()
        },
        "externalSources": {"allowed": False},
    }
    assert read(relocated(directory), "values/sovereign-crds.yaml") == {}


def test_nodes_may_know_the_registry_by_another_name(tmp_path: Path) -> None:
    directory = a_draft(tmp_path / "b").finish()
    found = relocated(directory, relocate.Wishes(registry="registry.internal"))
    for path, content in found.files.items():
        assert b"registry.site" not in content, path
    assert b"registry.internal/team/acme/sovereign-operator@sha256:" in found.files["images.txt"]


KUBERAY = (
    "image: {repository: quay.io/kuberay/operator, tag: v1.7.0, pullPolicy: IfNotPresent}\nreplicas: 1\n"
)
SPLIT = "manager:\n  image: {registry: quay.io, repository: kuberay/operator, tag: '', digest: ''}\n"
TEXT = "sidecar: quay.io/kuberay/operator:v1.7.0\nother: quay.io/kuberay/other:v1\nname: operator\n"


@pytest.mark.parametrize("values", [KUBERAY, SPLIT, TEXT])
def test_images_among_a_strange_charts_defaults_are_found(tmp_path: Path, values: str) -> None:
    draft = a_draft(tmp_path / "b")
    a_chart(draft, "kuberay-operator", values)
    directory = draft.finish()
    digest = digest_of(directory, "kuberay/operator")
    expected: dict[str, object] = {
        KUBERAY: {
            "image": {
                "repository": "registry.site:5000/team/kuberay/operator",
                "tag": f"v1.7.0@{digest}",
            }
        },
        SPLIT: {
            "manager": {
                "image": {
                    "registry": "registry.site:5000",
                    "repository": "team/kuberay/operator",
                    "digest": str(digest),
                }
            }
        },
        TEXT: {"sidecar": f"registry.site:5000/team/kuberay/operator@{digest}"},
    }[values]
    assert read(relocated(directory), "values/kuberay-operator.yaml") == expected


@pytest.mark.parametrize("archive", [b"", b"no archive", b"\x1f\x8b\x08\0"])
def test_a_chart_that_cannot_be_read_is_a_note_and_no_failure(archive: bytes) -> None:
    found = values_of("kuberay-operator", archive, Images(()))
    assert found.tree == {}
    assert len(found.notes) == 1


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("acme/tool", "docker.io/acme/tool"),
        ("localhost/x:1", "localhost/x:1"),
        (f"ghcr.io/a/b@{INDEX_DIGEST}", f"ghcr.io/a/b@{INDEX_DIGEST}"),
        ("Not An Image", None),
        ("", None),
    ],
)
def test_images_are_read_as_container_tools_write_them(text: str, name: str | None) -> None:
    found = image_reference(text)
    assert (None if found is None else found.name) == name


def test_an_image_is_known_by_the_index_that_it_was_taken_from_and_two_are_nobody() -> None:
    def image(tag: str) -> RelocatedImage:
        digest = Digest.of(tag.encode())
        origin = OciReference("ghcr.io", "a/b", tag, INDEX_DIGEST if tag == "v1" else digest)
        return RelocatedImage(origin, OciReference("here", "a/b", digest=digest))

    images = Images.of([image("v1"), image("v2")])
    assert images.find(f"ghcr.io/a/b@{INDEX_DIGEST}") == image("v1")
    assert images.find("ghcr.io/a/b:v2") == image("v2")
    assert images.find("ghcr.io/a/b") is None
    assert images.find("ghcr.io/a/c:v2") is None


# -- models -------------------------------------------------------------------------------------------------


def with_manifest(directory: Path, text: str) -> Path:
    draft = a_draft(directory)
    notes = ((MODEL_NOTE, f"{MODEL_ONE}:{COMMIT_ONE}"),)
    root = Root(Kind.FILE, draft.blob(text.encode(), FILE_TYPE), title="manifests/tiny.yaml", notes=notes)
    draft.roots.append(root)
    draft.items.append(FileItem(root))
    return draft.finish()


def test_a_manifest_names_the_artifact_and_the_image_that_are_here(tmp_path: Path) -> None:
    directory = with_manifest(tmp_path / "b", A_MANIFEST)
    found = relocated(directory)

    manifest = read(found, "models/tiny.yaml")
    assert manifest["metadata"] == {"name": "tiny", "namespace": "chat"}
    assert "status" not in manifest
    SovereignModel.model_validate(manifest)
    spec = manifest["spec"]
    assert isinstance(spec, dict)
    assert spec["source"] == {
        "artifact": {"reference": f"team/{MODEL_ONE}@{digest_of(directory, MODEL_ONE)}"}
    }
    serving = digest_of(directory, "acme/sovereign-serving")
    assert spec["serving"]["image"] == f"registry.site:5000/team/acme/sovereign-serving@{serving}"
    assert spec["serving"]["engineArgs"] == {"max_num_seqs": "8", "rope_theta": "1e6", "enforce_eager": "yes"}
    assert b'"1e6"' in found.files["models/tiny.yaml"], "another reader of YAML would take it for a number"
    assert spec["verification"] == {"keysSecretRef": {"name": "vendor-keys"}}
    assert list(found.files) == sorted(found.files)
    assert relocated(directory) == found


def test_an_image_that_the_bundle_lacks_stays_and_is_told(tmp_path: Path) -> None:
    text = A_MANIFEST.replace("sovereign-serving:v1", "sovereign-serving:v2")
    found = relocated(with_manifest(tmp_path / "b", text))
    assert "ghcr.io/acme/sovereign-serving:v2" in str(read(found, "models/tiny.yaml"))
    assert any("sovereign-serving:v2" in note for note in found.notes)


def test_a_model_without_a_manifest_gets_one(tmp_path: Path) -> None:
    found = relocated(a_draft(tmp_path / "b").finish(), relocate.Wishes(namespace="research"))
    manifest = read(found, "models/tiny-one.yaml")
    SovereignModel.model_validate(manifest)
    assert manifest["metadata"] == {"name": "tiny-one", "namespace": "research"}


def test_without_a_serving_image_there_is_a_note_instead_of_a_manifest_that_cannot_be_applied(
    tmp_path: Path,
) -> None:
    draft = Draft(tmp_path / "b")
    root = draft.model(MODEL_ONE, COMMIT_ONE, {"config.json": b"{}"})
    found = relocated(draft.finish())
    assert not [path for path in found.files if path.startswith("models/")]
    assert any(str(root.descriptor.digest) in note for note in found.notes)


@pytest.mark.parametrize(
    "text", ["[]", "kind: Secret", "a: &x 1\nb: *x", A_MANIFEST.partition("spec:")[0], "\0"]
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(BundleDefective):
        relocated(with_manifest(tmp_path / "b", text))


# -- the folder ---------------------------------------------------------------------------------------------

FILES = {"values/a.yaml": b"a: 1\n", "models/b.yaml": b"b: 2\n"}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_folder_is_written_whole_and_may_be_written_again(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "site"
    site_folder.write(FILES, folder)
    first = contents(folder)
    assert {path: body for path, body in first.items() if path != site_folder.LIST} == FILES
    site_folder.write(FILES, folder)
    assert contents(folder) == first
    site_folder.write({"models/c.yaml": b"c: 3\n"}, folder)
    assert set(contents(folder)) == {"models/c.yaml", site_folder.LIST}
    assert list(folder.parent.iterdir()) == [folder], "something was left beside it"


@pytest.mark.parametrize("change", ["edited", "added", "removed", "a link", "not ours"])
def test_what_somebody_has_edited_is_not_overwritten(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "site"
    site_folder.write(FILES, folder)
    match change:
        case "edited":
            (folder / "values/a.yaml").write_bytes(b"a: 7\n")
        case "added":
            (folder / "values/mine.yaml").write_bytes(b"")
        case "removed":
            (folder / "values/a.yaml").unlink()
        case "a link":
            (folder / "models/b.yaml").unlink()
            (folder / "models/b.yaml").symlink_to("/etc/hostname")
        case _:
            (folder / site_folder.LIST).unlink()
    before = contents(folder)
    with pytest.raises(DiskFailed, match="name another folder"):
        site_folder.write(FILES, folder)
    assert contents(folder) == before


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "site").write_bytes(b"a file")
    with pytest.raises(DiskFailed):
        site_folder.write(FILES, tmp_path / "site")
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


# -- the command --------------------------------------------------------------------------------------------


def test_the_command_loads_and_writes_what_is_applied(
    registry: RegistryDouble, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = a_bundle(tmp_path / "bundle")
    (bundle.parent / "config.json").write_text("{}")
    result = tmp_path / "result.json"
    arguments = [
        "bundle",
        "load",
        str(bundle),
        f"oci://{registry.host}/team",
        "--plain-http",
        "--docker-config",
        str(bundle.parent / "config.json"),
        "--output",
        str(tmp_path / "site"),
        "--progress",
        "none",
        "--result-file",
        str(result),
    ]

    assert run(arguments) == 0

    told = json.loads(result.read_text())
    assert told["reason"] == "Loaded"
    out = capsys.readouterr()
    assert "nobody's signature was checked" in out.err
    assert f"team/{MODEL_ONE}@sha256:" in out.out.replace("\n", "")
    site = contents(tmp_path / "site")
    assert {"values/sovereign-operator.yaml", "images.txt", "loaded.json"} <= set(site)
    assert json.loads(site["loaded.json"])["bundle"]["index"] == told["digest"]

    assert run(arguments) == 0
    assert contents(tmp_path / "site") == site


def test_the_command_refuses_an_edited_folder_before_it_sends(
    registry: RegistryDouble, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "mine.yaml").write_bytes(b"")
    bundle = a_bundle(tmp_path / "bundle")
    target = f"oci://{registry.host}"
    assert (
        run(["bundle", "load", str(bundle), target, "--plain-http", "--output", str(tmp_path / "site")]) == 1
    )
    assert registry.seen == []


@pytest.mark.parametrize(
    "arguments",
    [["oci://h/x:tag"], ["oci://h", "--registry-name", "a b"], ["oci://h", "--threshold", "0"], ["hf://x"]],
)
def test_wrong_usage_is_exit_2(tmp_path: Path, arguments: list[str]) -> None:
    assert run(["bundle", "load", str(tmp_path), *arguments]) == 2
