# SPDX-License-Identifier: Apache-2.0
"""What happens once is overcome: the mirror ends well, and what arrives is what was published."""

import json
from pathlib import Path

import pytest

from tests.dataplane.models import EMBEDDINGS, LAYER, SECOND, WEIGHTS, a_model, safetensors
from tests.dataplane.site import REPO, Site
from tests.unit.faults import proxy
from tests.unit.faults.proxy import Answer, Change, Cut, CutUpload, Fault, Hang, IgnoreRange, LoseAnswer

LATER = {"Retry-After": "0"}
NOT_SATISFIABLE = Answer(416, {"Docker-Upload-UUID": "gone"})

HICCUPS: dict[str, tuple[str, str | None, str, Fault]] = {
    # name: (who, method, path, fault)
    "the listing fails": ("hub", "GET", "/api/models/", Answer(500)),
    "the listing is throttled": ("hub", "GET", "/api/models/", Answer(429, LATER)),
    "the address of a file fails": ("hub", None, "/resolve/", Answer(502)),
    "the address of a file is throttled": ("hub", None, "/resolve/", Answer(429, LATER)),
    "a small file breaks off": ("hub", "GET", "/resolve-cache/", Cut(after=3)),
    "the storage fails": ("storage", "GET", "", Answer(503)),
    "the storage is throttled": ("storage", "GET", "", Answer(429, LATER)),
    "weights break off half-way": ("storage", "GET", "", Cut(after=20_000)),
    "weights break off before the first byte": ("storage", "GET", "", Cut(after=0)),
    "weights stop coming": ("storage", "GET", "", Hang(after=20_000)),
    "the signature has expired": ("storage", "GET", "", Answer(403, body=b"<Code>AccessDenied</Code>")),
    "the signature is unknown": ("storage", "GET", "", Answer(401)),
    "the registry fails at the first look": ("registry", None, "", Answer(503)),
    "an upload cannot be begun": ("registry", "POST", "/blobs/uploads/", Answer(500)),
    "the answer to a begun upload is lost": ("registry", "POST", "/blobs/uploads/", LoseAnswer()),
    "an upload breaks off half-way": ("registry", "PATCH", "", CutUpload(after=20_000)),
    "an upload breaks off at once": ("registry", "PATCH", "", CutUpload(after=0)),
    "the answer to a chunk is lost": ("registry", "PATCH", "", LoseAnswer()),
    "a chunk fails": ("registry", "PATCH", "", Answer(500)),
    "the upload's session is gone": ("registry", "PATCH", "", Answer(404)),
    "the registry has other bytes than we think": ("registry", "PATCH", "", NOT_SATISFIABLE),
    "a chunk is too large": ("registry", "PATCH", "", Answer(413)),
    "the end of an upload fails": ("registry", "PUT", "/blobs/uploads/", Answer(503)),
    "the end of an upload is not heard of": ("registry", "PUT", "/blobs/uploads/", LoseAnswer()),
    "the manifest is refused": ("registry", "PUT", "/manifests/", Answer(503)),
    "the manifest's arrival is not heard of": ("registry", "PUT", "/manifests/", LoseAnswer()),
    "a look for a blob breaks off": ("registry", "HEAD", "/blobs/", LoseAnswer()),
}


def assert_holds(site: Site, digest: str, target: Path) -> None:
    """The registry has the artifact under the commit's tag, and its files are the published ones."""
    assert site.commit in site.tags()
    site.registry.heal()
    pulled = site.pull(digest, target)
    assert pulled.code == 0, pulled
    published = site.hub_folder / REPO
    taken = {path.relative_to(published).as_posix() for path in published.rglob("*") if path.is_file()}
    taken.discard(".gitattributes")
    for name in taken:
        assert (target / name).read_bytes() == (published / name).read_bytes()


@pytest.mark.parametrize("name", HICCUPS)
def test_a_hiccup_is_overcome(site: Site, tmp_path: Path, name: str) -> None:
    who, method, path, fault = HICCUPS[name]
    faulty: proxy.FaultyProxy = getattr(site, who)
    faulty.break_(fault, method=method, path=path, times=1)
    if isinstance(fault, Hang):
        site.hasten()

    done = site.mirror()

    assert done.code == 0, done
    assert faulty.struck == 1
    assert site.hub_server.violations == []
    assert_holds(site, done.digest, tmp_path / "pulled")


def test_a_server_that_ignores_ranges_gets_its_file_restarted(site: Site, tmp_path: Path) -> None:
    site.storage.break_(Cut(after=20_000), times=1).break_(IgnoreRange())

    done = site.mirror()

    assert done.code == 0, done
    assert_holds(site, done.digest, tmp_path / "pulled")


def test_every_file_breaking_off_once_is_still_a_hiccup(site: Site, tmp_path: Path) -> None:
    site.storage.break_(Cut(after=10_000), times=2)
    site.registry.break_(CutUpload(after=5_000), method="PATCH", times=2)

    done = site.mirror()

    assert done.code == 0, done
    assert_holds(site, done.digest, tmp_path / "pulled")


def test_a_resumed_file_is_asked_for_from_where_it_broke_off(site: Site) -> None:
    site.publish({WEIGHTS: a_model(seed="resumed")[WEIGHTS]})
    site.storage.break_(Cut(after=20_000), times=1)

    assert site.mirror().code == 0

    ranges = [asked.headers.get("range", "") for asked in site.storage.asked]
    assert any(asked.startswith("bytes=20000-") for asked in ranges), ranges


def test_a_second_mirror_moves_no_weights(site: Site) -> None:
    """It looks at the headers only: facts are made of them."""
    large = safetensors({**EMBEDDINGS, "large": (1024, 1024)}, "large")
    index = {"weight_map": dict.fromkeys([*EMBEDDINGS, "large"], WEIGHTS) | dict.fromkeys(LAYER, SECOND)}
    site.publish({WEIGHTS: large, "model.safetensors.index.json": json.dumps(index).encode()})
    first = site.mirror()
    asked, sent = len(site.storage.asked), site.registry.count("PATCH")

    second = site.mirror()

    assert (second.code, second.digest) == (0, first.digest)
    assert site.registry.count("PATCH") == sent
    for again in site.storage.asked[asked:]:
        first_byte, last_byte = again.headers["range"].removeprefix("bytes=").split("-")
        assert int(last_byte) - int(first_byte) < 64 * 1024


def test_the_digest_is_the_same_through_a_hub_that_stumbles(site: Site) -> None:
    first = site.mirror().digest
    site.repository += "-again"
    site.storage.break_(Cut(after=7_000), times=1)

    assert site.mirror().digest == first


def test_headers_that_change_nothing_are_not_minded(site: Site) -> None:
    site.storage.break_(Change(proxy.header("X-Cache", "Hit from nowhere")))
    assert site.mirror().code == 0
