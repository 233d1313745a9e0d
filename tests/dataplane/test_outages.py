# SPDX-License-Identifier: Apache-2.0
"""What does not go away ends the mirror with its reason, and nothing to be cleaned up.

Nothing is tagged, the message is one for the user, and once the cause is gone the same command succeeds.
"""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from tests.dataplane.models import WEIGHTS, a_model, framed
from tests.dataplane.site import REPO, Outcome, Site
from tests.unit.faults import proxy
from tests.unit.faults.proxy import Answer, Change, Cut, CutUpload, Fault, Hang, LoseAnswer, Trickle

GATED = Answer(
    403,
    {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to model {REPO} is restricted."},
)


@dataclasses.dataclass(frozen=True)
class Outage:
    who: str
    fault: Fault
    reason: str
    code: int
    method: str | None = None
    path: str = ""
    says: str = ""
    """A pattern that the message must match."""


OUTAGES: dict[str, Outage] = {
    # the hub
    "the hub fails": Outage("hub", Answer(500), "SourceUnavailable", 1),
    "the hub throttles without end": Outage("hub", Answer(429, {"Retry-After": "0"}), "SourceUnavailable", 1),
    "the hub breaks every connection": Outage("hub", LoseAnswer(), "SourceUnavailable", 1),
    "the hub refuses the token": Outage("hub", Answer(401), "SourceForbidden", 1),
    "the hub forbids": Outage("hub", Answer(403), "SourceForbidden", 1),
    "gated when files are asked for": Outage(
        "hub", GATED, "SourceForbidden", 1, path="/resolve/", says=f"/{REPO}"
    ),
    "the listing is not JSON": Outage(
        "hub", Answer(200, {}, b"<html>login</html>"), "SourceUnavailable", 1, path="/api/models"
    ),
    "a file comes from another commit": Outage(
        "hub",
        Change(proxy.header("X-Repo-Commit", "f" * 40)),
        "SourceChanged",
        1,
        path="/resolve",
        says="ffff",
    ),
    "a file is gone": Outage(
        "hub", Answer(404, {"X-Error-Code": "EntryNotFound"}), "SourceChanged", 1, path=f"/{WEIGHTS}"
    ),
    # small files
    "a small file has a flipped bit": Outage(
        "hub", Change(proxy.flip(3)), "DigestMismatch", 3, "GET", "/resolve-cache/", says="json|README"
    ),
    "a small file is too short": Outage(
        "hub", Change(proxy.shorten(3)), "SizeMismatch", 3, "GET", "/resolve-cache/"
    ),
    "a small file is too long": Outage(
        "hub", Change(proxy.lengthen(3)), "SizeMismatch", 3, "GET", "/resolve-cache/"
    ),
    # the storage
    "weights have a flipped bit": Outage(
        "storage", Change(proxy.flip(10_000)), "DigestMismatch", 3, says="model-0000[12]-of"
    ),
    "weights are too short": Outage("storage", Change(proxy.shorten(1)), "SizeMismatch", 3),
    "weights are too long": Outage("storage", Change(proxy.lengthen(1)), "SizeMismatch", 3),
    "weights never come whole": Outage("storage", Cut(after=0), "SourceUnavailable", 1),
    "weights hang": Outage("storage", Hang(after=0), "Stalled", 1),
    "weights come at 1 KB/s": Outage("storage", Trickle(), "Stalled", 1),
    "the storage fails": Outage("storage", Answer(503), "SourceUnavailable", 1),
    "the storage forbids for good": Outage("storage", Answer(403), "SourceForbidden", 1),
    "the range is answered with another one": Outage(
        "storage",
        Change(proxy.header("Content-Range", "bytes 5-9/99999999")),
        "SourceChanged",
        1,
    ),
    # the registry
    "the registry fails": Outage("registry", Answer(500), "RegistryUnavailable", 1),
    "the registry breaks every connection": Outage("registry", LoseAnswer(), "RegistryUnavailable", 1),
    "the registry wants a sign-in": Outage(
        "registry", Answer(401, {"WWW-Authenticate": 'Basic realm="r"'}), "RegistryForbidden", 1
    ),
    "the registry allows no push": Outage("registry", Answer(403), "RegistryForbidden", 1, "POST"),
    "the registry takes 1 KB/s": Outage("registry", Trickle(), "Stalled", 1, "PATCH"),
    "every upload breaks off": Outage(
        "registry", CutUpload(after=100), "RegistryUnavailable", 1, "PATCH", "/uploads/"
    ),
    "the upload is sent to another origin": Outage(
        "registry",
        Change(proxy.header("Location", "http://127.0.0.1:9/v2/steal/blobs/uploads/1")),
        "UnsafeRedirect",
        3,
        "POST",
        "/uploads/",
    ),
    "the registry stores another digest": Outage(
        "registry",
        Answer(400, {}, b'{"errors":[{"code":"DIGEST_INVALID"}]}'),
        "RegistryUnavailable",
        1,
        "PUT",
    ),
    "the manifest is refused": Outage(
        "registry", Answer(503), "RegistryUnavailable", 1, "PUT", "/manifests/"
    ),
}


def assert_told_well(outcome: Outcome, *secrets: str) -> None:
    """A sentence for the user: whole, short, one line, without a trace and without secrets."""
    assert re.match(r"[A-Z'\"/a-z]", outcome.message), outcome
    assert outcome.message.endswith("."), outcome
    assert outcome.message.isprintable(), outcome
    assert len(outcome.message) < 1000, outcome
    for secret in secrets:
        assert secret not in outcome.message


def assert_succeeds_now(site: Site, commit: str | None = None) -> None:
    site.hub.heal()
    site.storage.heal()
    site.registry.heal()
    again = site.mirror(commit=commit)
    assert again.code == 0, again
    assert site.tags() == sorted({commit or site.commit, *site.tags()})


@pytest.mark.parametrize("name", OUTAGES)
def test_an_outage_has_its_reason_and_leaves_nothing(site: Site, name: str) -> None:
    outage = OUTAGES[name]
    faulty: proxy.FaultyProxy = getattr(site, outage.who)
    faulty.break_(outage.fault, method=outage.method, path=outage.path)
    if isinstance(outage.fault, Hang | Trickle):
        site.hasten()

    failed = site.mirror()

    assert (failed.reason, failed.code) == (outage.reason, outage.code), failed
    assert re.search(outage.says, failed.message), failed
    assert_told_well(failed)
    assert site.tags() == []
    assert site.hub_server.violations == []
    assert 0 < faulty.struck < 60, "it kept on asking"
    assert_succeeds_now(site)


def test_a_missing_repository(site: Site) -> None:
    (site.hub_folder / REPO).rename(site.hub_folder / "acme/hidden")
    failed = site.mirror(commit="0" * 40)

    assert (failed.reason, failed.code) == ("SourceNotFound", 1), failed
    assert REPO in failed.message
    assert_told_well(failed)
    (site.hub_folder / "acme/hidden").rename(site.hub_folder / REPO)
    assert_succeeds_now(site)


def test_a_missing_commit(site: Site) -> None:
    failed = site.mirror(commit="0" * 40)

    assert (failed.reason, failed.code) == ("RevisionNotFound", 1), failed
    assert "0" * 40 in failed.message
    assert_told_well(failed)
    assert_succeeds_now(site)


def test_a_gated_repository_names_the_licence_page_and_opens_with_the_token(site: Site) -> None:
    (site.hub_folder / REPO / ".gated").write_text("hf_friend\n")
    (site.hub_folder / "acme/other").mkdir()
    (site.hub_folder / "acme/other/.private").write_text("hf_stranger\n")

    for token in (None, "hf_stranger", "hf_nobody-knows-it"):
        failed = site.mirror(token=token)
        assert (failed.reason, failed.code) == ("SourceForbidden", 1), failed
        assert_told_well(failed, *([token] if token else []))
        assert token == "hf_nobody-knows-it" or f"/{REPO}" in failed.message
    assert site.tags() == []

    done = site.mirror(token="hf_friend")
    assert done.code == 0, done
    assert site.hub_server.violations == []


def test_the_token_never_leaves_the_hub(site: Site) -> None:
    (site.hub_folder / REPO / ".gated").write_text("hf_friend\n")
    # A hub that redirects a small file to a stranger: the token must stay behind as well.
    site.hub.break_(
        Answer(302, {"Location": f"{site.storage.url}/elsewhere"}), path="/resolve-cache/", method="GET"
    )

    failed = site.mirror(token="hf_friend")

    assert failed.code != 0
    assert site.storage.asked, "the redirect was not followed, so this proves nothing"
    assert [asked for asked in site.storage.asked if "authorization" in asked.headers] == []
    assert [asked for asked in site.registry.asked if "hf_friend" in str(asked.headers)] == []


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pkl", ".gguf"])
def test_only_pickles_are_nothing_to_serve(site: Site, suffix: str) -> None:
    for path in (site.hub_folder / REPO).glob("*.safetensors*"):
        path.unlink()
    site.publish({f"pytorch_model{suffix}": b"\x80\x04."})

    failed = site.mirror()

    assert (failed.reason, failed.code) == ("NothingServable", 3), failed
    assert_told_well(failed)
    assert site.registry.count("POST") == 0, "something was uploaded"
    site.publish(a_model())
    assert_succeeds_now(site)


UNSAFE = [
    "../../evil.json",
    "/etc/evil.json",
    "a\\b.json",
    "con.json",
    "x\u202e.json",
    "a/../b.json",
    "B.JSON",
]


@pytest.mark.parametrize("name", UNSAFE)
def test_an_unsafe_name_in_the_listing_is_refused(site: Site, name: str) -> None:
    if name == "B.JSON":
        site.publish({"b.json": b"{}"})
    site.publish({"zz.json": b"{}"})
    spelled = json.dumps(name, ensure_ascii=False).encode()
    site.hub.break_(Change(proxy.rewrite(b'"zz.json"', spelled)), path="/api/models/")

    failed = site.mirror()

    assert (failed.reason, failed.code) == ("UnsafeFileName", 3), failed
    assert_told_well(failed)
    assert site.registry.count("POST") == 0, "something was uploaded"
    assert_succeeds_now(site)


MALFORMED = {
    "length beyond the file": (1 << 40).to_bytes(8, "little") + b"{}" + bytes(50_000),
    "not JSON": framed(b"{this is not JSON}") + bytes(50_000),
    "a name twice": framed(
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],'
        b'"data_offsets":[0,0]}}'
    ),
    "empty": b"",
    "an error page": b"<html>404</html>" * 1000,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_header_is_refused(site: Site, name: str) -> None:
    site.publish({WEIGHTS: MALFORMED[name]})

    failed = site.mirror()

    assert (failed.reason, failed.code) == ("MalformedSafetensors", 3), failed
    assert WEIGHTS in failed.message
    assert_told_well(failed)
    assert site.tags() == []
    site.publish(a_model())
    assert_succeeds_now(site)


def test_an_index_that_names_a_missing_file_is_refused(site: Site) -> None:
    (site.hub_folder / REPO / WEIGHTS).unlink()

    failed = site.mirror()

    assert (failed.reason, failed.code) == ("IndexNamesMissingFile", 3), failed
    assert WEIGHTS in failed.message
    assert_told_well(failed)
    assert site.tags() == []


def test_a_commit_tag_that_points_elsewhere_is_not_moved(site: Site) -> None:
    first = site.mirror()
    stranger = {**site.manifest(first.digest), "annotations": {"made": "by somebody else"}}
    body = json.dumps(stranger).encode()
    other = site.put_manifest(body, str(stranger["mediaType"]))
    status, _ = site.ask(
        "PUT", f"manifests/{site.commit}", body, **{"Content-Type": str(stranger["mediaType"])}
    )
    assert status == 201

    failed = site.mirror()

    assert (failed.reason, failed.code) == ("TagConflict", 3), failed
    assert other in failed.message
    assert_told_well(failed)
    assert site.manifest(site.commit) == stranger, "the tag was moved"


def test_a_registry_that_is_down(site: Site, tmp_path: Path) -> None:
    with proxy.FaultyProxy("http://127.0.0.1:9") as gone:
        pass
    alive, site.registry = site.registry, gone

    failed = site.mirror()

    assert (failed.reason, failed.code) == ("RegistryUnavailable", 1), failed
    assert gone.host in failed.message
    assert_told_well(failed)
    site.registry = alive
    assert_succeeds_now(site)


def test_a_hub_that_is_down(site: Site) -> None:
    commit = site.commit
    with proxy.FaultyProxy("http://127.0.0.1:9") as gone:
        pass
    alive, site.hub = site.hub, gone

    failed = site.mirror(commit=commit)

    assert (failed.reason, failed.code) == ("SourceUnavailable", 1), failed
    assert_told_well(failed)
    site.hub = alive
    assert_succeeds_now(site)
