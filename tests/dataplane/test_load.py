# SPDX-License-Identifier: Apache-2.0
"""Loading into a real registry in trouble: what happens once is overcome, what stays has its reason and moves
no tag, what was verified is not sent again."""

import dataclasses
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.registry import LocalRegistry
from tests.dataplane.bundle_site import WIDTH, BundleSite, a_bundle_site
from tests.dataplane.site import Outcome
from tests.dataplane.test_outages import assert_told_well
from tests.dataplane.test_process import Command, start, wait_for_a_request
from tests.unit.airgap.bundles import COMMIT_ONE, COMMIT_TWO, MODEL_ONE, NAME, a_bundle
from tests.unit.faults import proxy
from tests.unit.faults.proxy import Answer, Change, CutUpload, Fault, FaultyProxy, LoseAnswer, Silence


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_bundle(tmp_path_factory.mktemp("pristine") / "bundle", width=WIDTH)


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "bundle")


@pytest.fixture
def site(bundle: Path, registry: LocalRegistry, repository: str) -> Iterator[BundleSite]:
    with a_bundle_site(bundle, registry, repository) as made:
        yield made


@pytest.fixture
def own(bundle: Path, registry: LocalRegistry, tmp_path: Path) -> Iterator[BundleSite]:
    """A registry of the test's own, whose disk and process it may harm."""
    with LocalRegistry(tmp_path / "registry") as server, a_bundle_site(bundle, server, "own") as made:
        yield made


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
    if isinstance(outage.fault, Silence):
        site.hasten()

    failed = site.load()

    assert (failed.reason, failed.code) == (outage.reason, outage.code), failed
    assert_told_well(failed)
    assert site.tagged() == []
    assert 0 < site.registry.struck < 60, "it kept on asking"
    assert_succeeds_now(site)


def assert_succeeds_now(site: BundleSite) -> None:
    """And sends no blob that the registry has: each is opened for upload at most once more."""
    site.registry.heal()
    held = site.held_bytes()
    again = site.load()
    assert again.code == 0, again
    assert site.loaded is not None
    total = sum(path.stat().st_size for path in (site.bundle / "blobs/sha256").iterdir())
    assert site.loaded.sent_bytes <= total - held
    site.assert_loaded()


def test_a_blob_that_goes_between_the_look_and_the_manifest_is_brought_again(own: BundleSite) -> None:
    own.registry.break_(Silence(), method="GET", path=f"{MODEL_ONE}/manifests/sha256", times=1)
    own.patience = dataclasses.replace(own.patience, stall=3.0)
    outcomes: list[Outcome] = []
    loading = threading.Thread(target=lambda: outcomes.append(own.load()))
    loading.start()
    wait_for_a_request(own.registry, "GET", f"{MODEL_ONE}/manifests/sha256")
    own.server.blob_path(str(own.shard)).unlink()
    own.registry.heal()
    loading.join(60)

    assert [outcome.code for outcome in outcomes] == [0], outcomes
    own.assert_loaded()


@pytest.mark.parametrize("damage", ["shortened", "lengthened", "emptied"])
def test_a_blob_of_another_length_on_the_registrys_disk_is_named(own: BundleSite, damage: str) -> None:
    assert own.load().code == 0
    path = own.server.blob_path(str(own.shard))
    content = path.read_bytes()
    path.write_bytes({"shortened": content[:-1], "lengthened": content + b"\0", "emptied": b""}[damage])

    failed = own.load()

    assert (failed.reason, failed.code) == ("RegistryBlobCorrupt", 3), failed
    assert str(own.shard) in failed.message
    assert "registry verify --repair" in failed.message
    assert_told_well(failed)


def test_a_manifest_that_rots_on_the_registrys_disk_is_named(own: BundleSite) -> None:
    assert own.load().code == 0
    [root] = [root for root in own.roots if root.tag == COMMIT_ONE]
    path = own.server.blob_path(str(root.descriptor.digest))
    path.write_bytes(path.read_bytes().replace(b"tiny-one", b"tiny-0ne"))

    failed = own.load()

    assert (failed.reason, failed.code) == ("DigestMismatch", 3), failed
    assert_told_well(failed)


def test_a_registry_that_restarts_in_the_middle_of_an_upload(own: BundleSite) -> None:
    own.patience = dataclasses.replace(own.patience, stall=1.0, attempts=20, longest_pause=1.0)
    own.registry.break_(Silence(), method="PATCH", times=1)
    outcomes: list[Outcome] = []
    loading = threading.Thread(target=lambda: outcomes.append(own.load()))
    loading.start()
    wait_for_a_request(own.registry, "PATCH")
    own.server.stop()
    own.server.start()
    loading.join(60)

    assert [outcome.code for outcome in outcomes] == [0], outcomes
    own.assert_loaded()


def test_a_registry_that_dies_and_comes_back_later_has_kept_what_was_verified(
    own: BundleSite, tmp_path: Path
) -> None:
    own.registry.break_(Silence(), method="PUT", path="/blobs/uploads/", after=8, times=1)
    # A process of its own: while it lives, nobody may take over what it has claimed.
    command = a_load(own, tmp_path, "--attempts", "2", "--longest-pause", "0.1")
    wait_until_struck(own.registry)
    own.server.kill()
    own.registry.heal()
    ended = command.ended()
    assert (ended.reason, ended.code) == ("RegistryUnavailable", 1), ended

    own.server.start()
    assert own.tagged() == []
    assert_succeeds_now(own)


# -- kill -9 of the load ------------------------------------------------------------------------------------

POINTS: dict[str, tuple[str, str, int]] = {
    # name: (method, path, how many such requests pass before it dies in the next)
    "while it comes to the door": ("PUT", "/sovereign/state/manifests/_loading", 0),
    "while it sends a blob": ("PATCH", "/blobs/uploads/", 3),
    "between the blobs and the manifests": ("PUT", "/manifests/sha256", 0),
    "between the record and the tags": ("PUT", f"/sovereign/state/manifests/{NAME}", 0),
    "between two tags": ("PUT", f"/manifests/{COMMIT_ONE}", 0),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_load_that_is_killed_leaves_only_whole_tags_and_the_next_goes_on(
    site: BundleSite, tmp_path: Path, point: str
) -> None:
    method, path, before = POINTS[point]
    site.registry.break_(Silence(), method=method, path=path, after=before, times=1)
    command = a_load(site, tmp_path)
    wait_until_struck(site.registry)

    command.process.kill()
    command.process.communicate(timeout=30)

    site.assert_tags_are_whole()
    held = site.held_bytes()
    assert bool(site.tagged()) == (point == "between two tags")
    site.registry.heal()
    begun = time.monotonic()
    done = a_load(site, tmp_path).ended()
    assert (done.reason, done.code) == ("Loaded", 0), done
    assert time.monotonic() - begun < 30, "it waited for the dead run's claim to end"
    total = sum(path.stat().st_size for path in (site.bundle / "blobs/sha256").iterdir())
    sent = int(done.message.partition("(")[2].partition(" bytes")[0])
    assert sent <= total - held
    site.assert_loaded()


def test_a_second_load_into_the_same_place_fails_fast(site: BundleSite, tmp_path: Path) -> None:
    site.registry.break_(Silence(), method="PATCH", times=1)
    first = a_load(site, tmp_path)
    wait_until_struck(site.registry)

    second = site.load()

    assert (second.reason, second.code) == ("LoadInProgress", 1), second
    assert f"the load of {NAME} 1" in second.message
    assert_told_well(second)
    first.process.send_signal(signal.SIGTERM)
    ended = first.ended()
    assert (ended.reason, ended.code) == ("Interrupted", 1), ended
    assert site.tagged() == []
    assert_succeeds_now(site)


def test_two_loads_into_two_places_do_not_mind_each_other(site: BundleSite, tmp_path: Path) -> None:
    site.registry.break_(Silence(), method="PATCH", times=1)
    first = a_load(site, tmp_path)
    wait_until_struck(site.registry)
    with a_bundle_site(site.bundle, site.server, f"{site.prefix}/elsewhere") as other:
        assert other.load().code == 0
        other.assert_loaded()
    first.process.kill()
    first.process.communicate(timeout=30)


def test_of_two_loads_that_begin_together_one_ends_well(site: BundleSite, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    ended = [command.ended() for command in [a_load(site, folder) for folder in folders]]
    assert "Loaded" in [each.reason for each in ended], ended
    assert {each.reason for each in ended} <= {"Loaded", "LoadInProgress"}
    site.assert_loaded()


def test_a_newer_bundle_moves_tags_and_an_older_one_does_not_come_back(
    site: BundleSite, tmp_path: Path
) -> None:
    assert site.load().code == 0
    newer = a_bundle(tmp_path / "newer", version=2, width=WIDTH)
    assert site.load(newer).code == 0
    refused = site.load()
    assert (refused.reason, refused.code) == ("OlderVersion", 3), refused
    assert_told_well(refused)
    site.assert_loaded()
    assert {root.tag for root in site.tagged()} >= {COMMIT_ONE, COMMIT_TWO}


def a_load(site: BundleSite, folder: Path, *options: str) -> Command:
    return start(folder, "bundle", "load", str(site.bundle), site.target, "--plain-http", *options)


def wait_until_struck(front: FaultyProxy) -> None:
    ends = time.monotonic() + 60
    while not front.struck:
        assert time.monotonic() < ends, "the request never came"
        time.sleep(0.02)


@pytest.mark.parametrize("at", ["the start", "the middle", "the end"])
def test_what_rotted_on_the_registrys_disk_is_found_removed_and_loaded_again(
    own: BundleSite, tmp_path: Path, at: str
) -> None:
    assert own.load().code == 0
    path = own.server.blob_path(str(own.shard))
    content = bytearray(path.read_bytes())
    content[{"the start": 0, "the middle": len(content) // 2, "the end": -1}[at]] ^= 1
    path.write_bytes(content)
    assert own.load().code == 0, "a load sees the blob's name and length only"
    storage = str(own.server.folder / "data")

    found = start(tmp_path, "registry", "verify", storage).ended()
    assert (found.reason, found.code) == ("RegistryDamaged", 3), found
    repaired = start(tmp_path, "registry", "verify", storage, "--repair").ended()
    assert (repaired.reason, repaired.code) == ("RegistryDamaged", 3), repaired
    assert COMMIT_ONE in repaired.message
    assert COMMIT_TWO in repaired.message
    assert_told_well(repaired)

    assert own.load().code == 0
    assert own.loaded is not None
    assert own.loaded.sent_bytes == len(content), "more than the damaged blob was sent"
    own.assert_loaded()
    whole = start(tmp_path, "registry", "verify", storage).ended()
    assert (whole.reason, whole.code) == ("Verified", 0), whole


def test_a_manifest_that_rotted_is_found_removed_and_loaded_again(own: BundleSite, tmp_path: Path) -> None:
    assert own.load().code == 0
    [root] = [root for root in own.roots if root.tag == COMMIT_ONE]
    path = own.server.blob_path(str(root.descriptor.digest))
    path.write_bytes(path.read_bytes().replace(b"tiny-one", b"tiny-0ne"))
    storage = str(own.server.folder / "data")

    assert start(tmp_path, "registry", "verify", storage, "--repair").ended().code == 3

    assert own.tag(root) is None
    assert own.load().code == 0
    own.assert_loaded()
    assert start(tmp_path, "registry", "verify", storage).ended().code == 0
