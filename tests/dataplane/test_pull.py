# SPDX-License-Identifier: Apache-2.0
"""`pull` from a registry that lies, breaks off or went bad: no wrong file ever lies under its name."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.dataplane.models import WEIGHTS
from tests.dataplane.site import REPO, Site
from tests.dataplane.test_outages import assert_told_well
from tests.unit.faults import proxy
from tests.unit.faults.proxy import Answer, Change, Cut, Fault, Hang, LoseAnswer

Json = dict[str, object]


@pytest.fixture
def digest(site: Site) -> str:
    done = site.mirror()
    assert done.code == 0, done
    return done.digest


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def layer_of(site: Site, digest: str, path: str = WEIGHTS) -> Json:
    layers = site.manifest(digest)["layers"]
    assert isinstance(layers, list)
    found: Json = next(one for one in layers if one["annotations"]["org.cncf.model.filepath"] == path)
    return found


def files_in(target: Path) -> dict[str, bytes]:
    """What lies under its final name; our own temporary files start with a dot."""
    return {
        path.relative_to(target).as_posix(): path.read_bytes()
        for path in target.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def published(site: Site) -> dict[str, bytes]:
    return files_in(site.hub_folder / REPO)


def assert_pulls_now(site: Site, digest: str, target: Path) -> None:
    site.registry.heal()
    again = site.pull(digest, target)
    assert again.code == 0, again
    assert files_in(target) == published(site)


def test_what_was_published_arrives(site: Site, digest: str, target: Path) -> None:
    assert_pulls_now(site, digest, target)


def test_only_the_configuration_leaves_the_weights_out(site: Site, digest: str, target: Path) -> None:
    done = site.pull(digest, target, config_only=True)

    assert done.code == 0, done
    assert files_in(target).keys() == {name for name in published(site) if not name.endswith(".safetensors")}


HICCUPS: dict[str, Fault] = {
    "breaks off half-way": Cut(after=9_000),
    "breaks off at once": Cut(after=0),
    "fails": Answer(503),
    "is throttled": Answer(429, {"Retry-After": "0"}),
    "stops coming": Hang(after=9_000),
    "is refused once": LoseAnswer(),
}


@pytest.mark.parametrize("name", HICCUPS)
@pytest.mark.parametrize("path", ["/blobs/", "/manifests/"])
def test_a_hiccup_is_overcome(site: Site, digest: str, target: Path, path: str, name: str) -> None:
    site.registry.break_(HICCUPS[name], method="GET", path=path, times=1)
    if name == "stops coming":
        site.hasten()

    assert site.pull(digest, target).code == 0
    assert site.registry.struck == 1
    assert files_in(target) == published(site)


@dataclasses.dataclass(frozen=True)
class Outage:
    fault: Fault
    reason: str
    code: int
    path: str = "/blobs/"


OUTAGES: dict[str, Outage] = {
    "blobs have a flipped bit": Outage(Change(proxy.flip(1)), "RegistryBlobCorrupt", 3),
    "blobs are too short": Outage(Change(proxy.shorten(1)), "SizeMismatch", 3),
    "blobs are too long": Outage(Change(proxy.lengthen(1)), "SizeMismatch", 3),
    "blobs never come whole": Outage(Cut(after=0), "RegistryUnavailable", 1),
    "blobs hang": Outage(Hang(after=0), "Stalled", 1),
    "blobs are gone": Outage(Answer(404), "ArtifactNotFound", 1),
    "the registry fails": Outage(Answer(500), "RegistryUnavailable", 1),
    "the registry forbids": Outage(Answer(403), "RegistryForbidden", 1),
    "the registry wants a sign-in": Outage(
        Answer(401, {"WWW-Authenticate": 'Basic realm="r"'}), "RegistryForbidden", 1, "/v2/"
    ),
    "the manifest has a flipped bit": Outage(Change(proxy.flip(20)), "DigestMismatch", 3, "/manifests/"),
    "the manifest is gone": Outage(Answer(404), "ArtifactNotFound", 1, "/manifests/"),
    "the manifest is an error page": Outage(
        Answer(200, {"Content-Type": "text/html"}, b"<html>"), "DigestMismatch", 3, "/manifests/"
    ),
}


@pytest.mark.parametrize("name", OUTAGES)
def test_an_outage_has_its_reason_and_leaves_nothing(
    site: Site, digest: str, target: Path, name: str
) -> None:
    outage = OUTAGES[name]
    site.registry.break_(outage.fault, method="GET", path=outage.path)
    if isinstance(outage.fault, Hang):
        site.hasten()

    failed = site.pull(digest, target)

    assert (failed.reason, failed.code) == (outage.reason, outage.code), failed
    assert_told_well(failed)
    assert files_in(target) == {}
    assert site.registry.struck < 60, "it kept on asking"
    assert_pulls_now(site, digest, target)


def test_a_blob_that_went_bad_on_the_registrys_disk(site: Site, digest: str, target: Path) -> None:
    layer = layer_of(site, digest)
    stored = site.registry_server.blob_path(str(layer["digest"]))
    good = stored.read_bytes()
    stored.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))

    failed = site.pull(digest, target)
    again = site.mirror()

    assert (failed.reason, failed.code) == ("RegistryBlobCorrupt", 3), failed
    assert str(layer["digest"]) in failed.message
    assert WEIGHTS not in files_in(target)
    assert_told_well(failed)
    assert again.code == 0, "a mirror takes the registry's word that a blob exists"
    stored.write_bytes(good)
    assert_pulls_now(site, digest, target)


def test_a_blob_that_was_cut_on_the_registrys_disk(site: Site, digest: str, target: Path) -> None:
    stored = site.registry_server.blob_path(str(layer_of(site, digest)["digest"]))
    good = stored.read_bytes()
    stored.write_bytes(good[:1000])

    failed = site.pull(digest, target)

    assert failed.reason in ("SizeMismatch", "RegistryBlobCorrupt"), failed
    assert failed.code == 3
    assert WEIGHTS not in files_in(target)
    assert_told_well(failed)
    stored.write_bytes(good)
    assert_pulls_now(site, digest, target)


def test_a_mirror_notices_a_blob_of_another_length(site: Site, digest: str) -> None:
    """HEAD proves existence with the expected length: a cut blob is not taken for the file."""
    site.registry_server.blob_path(str(layer_of(site, digest)["digest"])).write_bytes(b"short")

    failed = site.mirror()

    assert failed.code == 3, failed
    assert failed.reason in ("SizeMismatch", "RegistryBlobCorrupt"), failed
    assert_told_well(failed)


Edit = Callable[[Json, Json], None]
"""Changes a manifest and its layer of weights in place."""


def _size(manifest: Json, layer: Json) -> None:
    layer["size"] = int(str(layer["size"])) + 1


def _path(manifest: Json, layer: Json) -> None:
    layer["annotations"] = {"org.cncf.model.filepath": "../../evil", "org.opencontainers.image.title": "x"}


def _compressed(manifest: Json, layer: Json) -> None:
    layer["mediaType"] = "application/vnd.cncf.model.weight.v1.tar+gzip"


def _another_format(manifest: Json, layer: Json) -> None:
    manifest["annotations"] = {**dict(manifest["annotations"]), "dev.sovereign.format": "99"}  # type: ignore[call-overload]


def _an_image(manifest: Json, layer: Json) -> None:
    del manifest["artifactType"]


MANIFESTS: dict[str, tuple[Edit, str]] = {
    "a layer has another size": (_size, "SizeMismatch"),
    "a file lies elsewhere": (_path, "UnsafeFileName"),
    "a layer is compressed": (_compressed, "MalformedManifest"),
    "the format is newer": (_another_format, "MalformedManifest"),
    "it is no model": (_an_image, "MalformedManifest"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_wrong_manifest_is_refused_though_the_registry_took_it(
    site: Site, digest: str, target: Path, name: str
) -> None:
    edit, reason = MANIFESTS[name]
    manifest = site.manifest(digest)
    layers = manifest["layers"]
    assert isinstance(layers, list)
    edit(manifest, next(one for one in layers if one["size"] > 30_000))
    wrong = site.put_manifest(json.dumps(manifest).encode(), str(manifest["mediaType"]))

    failed = site.pull(wrong, target)

    assert (failed.reason, failed.code) == (reason, 3), failed
    assert_told_well(failed)
    assert WEIGHTS not in files_in(target)
    assert not (target.parent.parent / "evil").exists()
    assert_pulls_now(site, digest, target)


def test_a_manifest_with_two_readings_is_refused(site: Site, digest: str, target: Path) -> None:
    manifest = site.manifest(digest)
    text = json.dumps(manifest).replace('"schemaVersion": 2', '"schemaVersion": 2, "schemaVersion": 2')
    twice = site.put_manifest(text.encode(), str(manifest["mediaType"]))

    failed = site.pull(twice, target)

    assert (failed.reason, failed.code) == ("MalformedManifest", 3), failed
    assert_told_well(failed)
    assert files_in(target) == {}


def test_an_artifact_that_is_not_there(site: Site, target: Path) -> None:
    failed = site.pull("sha256:" + "0" * 64, target)

    assert (failed.reason, failed.code) == ("ArtifactNotFound", 1), failed
    assert_told_well(failed)
    assert files_in(target) == {}


def test_a_target_that_is_a_file(site: Site, digest: str, target: Path) -> None:
    target.write_text("mine")

    failed = site.pull(digest, target)

    assert failed.code == 1, failed
    assert_told_well(failed)
    assert target.read_text() == "mine"


def test_a_link_in_the_target_is_not_followed(site: Site, digest: str, target: Path, tmp_path: Path) -> None:
    """Who may write into the target first must not choose where our bytes go."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("mine")
    target.mkdir()
    (target / WEIGHTS).symlink_to(outside / "victim")

    site.pull(digest, target)

    assert (outside / "victim").read_text() == "mine"
