# SPDX-License-Identifier: Apache-2.0
"""Loading into a real registry in trouble: what happens once is overcome, what stays has its reason and moves
no tag."""

import dataclasses
import json
from pathlib import Path

import pytest

from dev.registry import LocalRegistry
from sovereign_airgap.bundle.index import Kind
from sovereign_airgap.bundle.items import ImageItem
from sovereign_airgap.oci import DOCKER_INDEX_TYPE, DOCKER_MANIFEST_TYPE
from tests.dataplane.bundle_site import (
    BundleSite,
    a_bundle_site,
    assert_succeeds_now,
)
from tests.dataplane.test_outages import assert_told_well
from tests.unit.airgap.bundles import COMMIT_ONE, MODEL_ONE, NAME, Draft
from tests.unit.faults import proxy
from tests.unit.faults.proxy import Answer, Change, CutUpload, Fault, LoseAnswer, Silence, Trickle


@pytest.fixture
def site(bundle_site: BundleSite) -> BundleSite:
    return bundle_site


def test_what_is_loaded_is_what_was_bundled_and_is_not_sent_twice(site: BundleSite) -> None:
    assert site.load().code == 0
    site.assert_loaded()
    assert site.state() == [NAME]
    uploads = site.registry.count("POST", "/blobs/uploads/")

    assert site.load().code == 0

    assert site.loaded is not None
    assert (site.loaded.sent, site.loaded.mounted, site.loaded.tags_moved) == (0, 0, 0)
    assert site.registry.count("POST", "/blobs/uploads/") == uploads
    site.assert_loaded()


def test_shared_shards_are_mounted(site: BundleSite) -> None:
    assert site.load().code == 0
    mounts = [one for one in site.registry.asked if f"mount=sha256%3A{site.shard.hex}" in one.target]
    assert len(mounts) == 1
    sent = sum(int(one.headers["content-length"]) for one in site.registry.asked if one.method == "PATCH")
    large = [
        path.stat().st_size
        for path in (site.bundle / "blobs/sha256").iterdir()
        if path.stat().st_size > 1 << 20
    ]
    assert sent == sum(large)


HICCUPS: dict[str, tuple[str | None, str, Fault]] = {
    # name: (method, path, fault)
    "it fails at the first look": (None, "", Answer(500)),
    "it is throttled": ("HEAD", "/blobs/", Answer(429, {"Retry-After": "0"})),
    "an upload cannot be begun": ("POST", "/blobs/uploads/", Answer(500)),
    "the answer to a begun upload is lost": ("POST", "/blobs/uploads/", LoseAnswer()),
    "a mount fails": ("POST", "mount=", Answer(503)),
    "a chunk fails": ("PATCH", "", Answer(500)),
    "a chunk is throttled": ("PATCH", "", Answer(429, {"Retry-After": "0"})),
    "a chunk breaks off half-way": ("PATCH", "", CutUpload(after=100_000)),
    "a chunk breaks off at once": ("PATCH", "", CutUpload(after=0)),
    "a chunk's answer never comes": ("PATCH", "", Silence()),
    "a chunk's answer is lost": ("PATCH", "", LoseAnswer()),
    "the session is lost": ("PATCH", "", Answer(404)),
    "a chunk is too large": ("PATCH", "", Answer(413)),
    "the end of an upload fails": ("PUT", "/blobs/uploads/", Answer(503)),
    "the end of an upload is not heard of": ("PUT", "/blobs/uploads/", LoseAnswer()),
    "a manifest is refused": ("PUT", f"{MODEL_ONE}/manifests/sha256", Answer(503)),
    "a manifest's arrival is not heard of": ("PUT", f"{MODEL_ONE}/manifests/sha256", LoseAnswer()),
    "a tag's arrival is not heard of": ("PUT", f"/manifests/{COMMIT_ONE}", LoseAnswer()),
    "the record is refused": ("PUT", f"/sovereign/state/manifests/{NAME}", Answer(503)),
}


@pytest.mark.parametrize("name", HICCUPS)
def test_a_hiccup_is_overcome(site: BundleSite, name: str) -> None:
    method, path, fault = HICCUPS[name]
    site.registry.break_(fault, method=method, path=path, times=1)
    if isinstance(fault, Silence):
        site.hasten()
    if fault == Answer(413):
        site.chunk = 64 * 1024 * 1024

    done = site.load()

    assert done.code == 0, done
    assert site.registry.struck == 1
    site.assert_loaded()


@dataclasses.dataclass(frozen=True)
class Outage:
    fault: Fault
    reason: str
    code: int = 1
    method: str | None = None
    path: str = ""


ELSEWHERE = "http://127.0.0.1:9/v2/steal/blobs/uploads/1"
METADATA = "http://169.254.169.254/latest/meta-data/"
OUTAGES: dict[str, Outage] = {
    "it fails": Outage(Answer(500), "RegistryUnavailable"),
    "it fails at uploads": Outage(Answer(500), "RegistryUnavailable", method="PATCH"),
    "it is throttled without end": Outage(Answer(429, {"Retry-After": "0"}), "RegistryUnavailable"),
    "it breaks every connection": Outage(LoseAnswer(), "RegistryUnavailable"),
    "it falls silent": Outage(Silence(), "Stalled", method="PATCH"),
    "it takes 1 KB/s": Outage(Trickle(), "Stalled", method="PATCH"),
    "every upload breaks off half-way": Outage(CutUpload(after=1000), "RegistryUnavailable", method="PATCH"),
    "every session is lost": Outage(Answer(404), "RegistryUnavailable", method="PATCH"),
    "its Location is on another origin": Outage(
        Change(proxy.header("Location", ELSEWHERE)), "UnsafeRedirect", 3, "POST", "/uploads/"
    ),
    "its Location moves away within a blob": Outage(
        Change(proxy.header("Location", ELSEWHERE)), "UnsafeRedirect", 3, "PATCH"
    ),
    "it redirects an upload to the metadata service": Outage(
        Answer(307, {"Location": METADATA}), "RegistryUnavailable", method="PATCH"
    ),
    "it redirects the start of an upload": Outage(
        Answer(307, {"Location": METADATA}), "RegistryUnavailable", method="POST"
    ),
    "it redirects a manifest": Outage(
        Answer(302, {"Location": METADATA}), "RegistryUnavailable", method="GET", path="/manifests/"
    ),
    "the login ends in the middle": Outage(
        Answer(401, {"WWW-Authenticate": 'Basic realm="r"'}), "RegistryForbidden", method="PATCH"
    ),
    "it allows no push": Outage(Answer(403), "RegistryForbidden", method="POST"),
    "its quota is used up": Outage(
        Answer(507, {}, b'{"errors":[{"code":"DENIED","message":"quota"}]}'),
        "RegistryUnavailable",
        method="PUT",
    ),
    "it stores another digest": Outage(
        Answer(400, {}, b'{"errors":[{"code":"DIGEST_INVALID"}]}'),
        "RegistryUnavailable",
        method="PUT",
        path="/blobs/",
    ),
    "it names another digest for a manifest": Outage(
        Change(proxy.header("Docker-Content-Digest", f"sha256:{'0' * 64}")),
        "DigestMismatch",
        3,
        "PUT",
        f"{MODEL_ONE}/manifests/sha256",
    ),
    "no manifest is taken": Outage(
        Answer(503), "RegistryUnavailable", method="PUT", path="/manifests/sha256"
    ),
    "the record is not taken": Outage(
        Answer(503), "RegistryUnavailable", method="PUT", path=f"/state/manifests/{NAME}"
    ),
}


@pytest.mark.parametrize("name", OUTAGES)
def test_an_outage_has_its_reason_and_moves_no_tag(site: BundleSite, name: str) -> None:
    outage = OUTAGES[name]
    site.registry.break_(outage.fault, method=outage.method, path=outage.path)
    if isinstance(outage.fault, Silence | Trickle):
        site.hasten()

    failed = site.load()

    assert (failed.reason, failed.code) == (outage.reason, outage.code), failed
    assert_told_well(failed)
    assert site.tagged() == []
    assert 0 < site.registry.struck < 60, "it kept on asking"
    assert_succeeds_now(site)


def test_an_image_of_dockers_types_for_two_platforms_is_loaded_as_it_is(
    registry: LocalRegistry, repository: str, tmp_path: Path
) -> None:
    draft = Draft(tmp_path / "bundle")
    children = []
    for architecture in ("amd64", "arm64"):
        config = draft.blob(f'{{"os":"linux","architecture":"{architecture}"}}'.encode())
        layer = draft.blob(architecture.encode() * 100)
        manifest = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST_TYPE,
            "config": {**config.as_json(), "mediaType": "application/vnd.docker.container.image.v1+json"},
            "layers": [{**layer.as_json(), "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip"}],
        }
        child = draft.blob(json.dumps(manifest).encode(), DOCKER_MANIFEST_TYPE)
        children.append({**child.as_json(), "platform": {"os": "linux", "architecture": architecture}})
    listed = {"schemaVersion": 2, "mediaType": DOCKER_INDEX_TYPE, "manifests": children}
    root = draft.root(
        Kind.IMAGE, draft.blob(json.dumps(listed).encode(), DOCKER_INDEX_TYPE), "tools/busybox", "1.36"
    )
    draft.items.append(ImageItem(root, "docker.io/library/busybox:1.36", "all", 7))
    with a_bundle_site(draft.finish(), registry, repository) as site:
        done = site.load()
        assert done.code == 0, done
        types = f"{DOCKER_MANIFEST_TYPE}, {DOCKER_INDEX_TYPE}"
        status, body = site.ask("GET", "tools/busybox/manifests/1.36", Accept=types)
        assert (status, json.loads(body)) == (200, listed)
        for entry in children:
            assert site.ask("GET", f"tools/busybox/manifests/{entry['digest']}", Accept=types)[0] == 200
        assert site.load().code == 0
        assert site.loaded is not None
        assert (site.loaded.sent, site.loaded.tags_moved) == (0, 0)
