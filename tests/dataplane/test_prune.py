# SPDX-License-Identifier: Apache-2.0
"""Pruning a real registry: what is in use stays whole, what goes is gone after the collection."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.binaries import binary
from dev.registry import LocalRegistry
from sovereign_airgap import catalogue, registry_prune
from sovereign_airgap.access import Access
from sovereign_airgap.bundle.index import Kind, Root
from sovereign_airgap.errors import InvalidReference
from sovereign_airgap.progress import Progress
from sovereign_airgap.reference import OciReference
from sovereign_airgap.registry_prune import PruneOptions
from tests.dataplane.bundle_site import BundleSite, a_bundle_site, a_load, wait_until_struck
from tests.dataplane.test_process import Command, start
from tests.unit.airgap.bundles import (
    COMMIT_ONE,
    COMMIT_TWO,
    IMAGE,
    MODEL_ONE,
    MODEL_TWO,
    NAME,
    a_bundle,
    a_root,
)
from tests.unit.faults.proxy import Silence


@pytest.fixture
def site(tmp_path: Path, registry: LocalRegistry) -> Iterator[BundleSite]:
    """A registry of the test's own: the catalogue has everything in it."""
    bundle = a_bundle(tmp_path / "bundle", width=256)
    with LocalRegistry(tmp_path / "registry") as server, a_bundle_site(bundle, server, "team") as made:
        assert made.load().code == 0
        yield made


def prune(site: BundleSite, folder: Path, *arguments: str) -> Command:
    return start(folder, "registry", "prune", site.target, "--plain-http", *arguments)


def model(site: BundleSite, repository: str) -> Root:
    return a_root(site.bundle, repository)


def reference(site: BundleSite, repository: str) -> str:
    return f"{site.prefix}/{repository}@{model(site, repository).descriptor.digest}"


def collect(site: BundleSite) -> None:
    """Garbage collection as the chart's Job runs it: with untagged manifests, while nothing is written."""
    site.server.stop()
    command = [str(binary("registry")), "garbage-collect", "--delete-untagged"]
    subprocess.run([*command, str(site.server.folder / "config.json")], check=True, capture_output=True)
    site.server.start()


def stored(site: BundleSite) -> set[str]:
    blobs = site.server.folder / "data/docker/registry/v2/blobs/sha256"
    return {path.parent.name for path in blobs.rglob("data")}


def test_by_default_nothing_is_removed(site: BundleSite, tmp_path: Path) -> None:
    before = stored(site)
    site.registry.asked.clear()
    done = prune(site, tmp_path, "--keep", reference(site, MODEL_ONE)).ended()
    assert (done.reason, done.code) == ("Planned", 0), done
    site.assert_loaded()
    assert stored(site) == before
    assert {one.method for one in site.registry.asked} == {"GET", "HEAD"}


def test_what_goes_is_gone_and_what_stays_is_whole(site: BundleSite, tmp_path: Path) -> None:
    before = stored(site)
    sizes = {path.name: path.stat().st_size for path in (site.bundle / "blobs/sha256").iterdir()}

    done = prune(site, tmp_path, "--keep", reference(site, MODEL_ONE), "--delete").ended()

    assert (done.reason, done.code) == ("Pruned", 0), done
    freed = json.loads((tmp_path / "termination-log").read_text())["bytes"]
    collect(site)
    assert {root.repository for root in site.tagged()} == {MODEL_ONE, IMAGE, "charts/sovereign-operator"}
    site.assert_tags_are_whole()
    gone = before - stored(site)
    assert freed == sum(size for name, size in sizes.items() if name in gone)
    assert site.shard.hex in stored(site), "a shard that the kept model shares went with the other one"

    again = site.load()
    assert again.code == 0, again
    site.assert_loaded()


def test_facts_and_signatures_go_with_what_they_are_about(site: BundleSite, tmp_path: Path) -> None:
    assert prune(site, tmp_path, "--keep-tags", f"*:{COMMIT_TWO}", "--delete").ended().code == 0
    status, body = site.ask("GET", f"{MODEL_ONE}/tags/list")
    assert (status, json.loads(body)["tags"] or []) == (200, [])
    assert {root.kind for root in site.tagged() if root.repository == MODEL_TWO} == {
        Kind.MODEL,
        Kind.REFERRERS,
    }
    assert prune(site, tmp_path, "--keep-tags", f"*:{COMMIT_TWO}", "--delete").ended().code == 0


def test_what_a_loaded_bundle_brought_stays(site: BundleSite, tmp_path: Path) -> None:
    done = prune(site, tmp_path, "--keep-loaded", "--delete").ended()
    assert done.code == 0, done
    site.assert_loaded()
    assert site.state() == [NAME]


def test_a_reference_that_is_not_there_ends_it_before_anything_is_removed(
    site: BundleSite, tmp_path: Path
) -> None:
    listed = tmp_path / "in-use"
    listed.write_text(f"# models\n{reference(site, MODEL_ONE)}\n\nteam/models/org/misspelt:{COMMIT_TWO}\n")
    done = prune(site, tmp_path, "--keep-file", str(listed), "--delete").ended()
    assert (done.reason, done.code) == ("ArtifactNotFound", 1), done
    assert "misspelt" in done.message
    site.assert_loaded()


def test_only_the_wished_repositories_lose_something(site: BundleSite, tmp_path: Path) -> None:
    command = prune(
        site, tmp_path, "--keep-tags", f"*/{MODEL_TWO}:*", "--repositories", "sovereign/*", "--delete"
    )
    assert command.ended().code == 0
    assert {root.repository for root in site.roots} - {root.repository for root in site.tagged()} == {IMAGE}
    assert site.state() == [NAME]


def test_nothing_is_in_use_is_no_way_to_empty_a_registry(site: BundleSite, tmp_path: Path) -> None:
    assert prune(site, tmp_path, "--delete").ended().code == 2
    site.assert_loaded()


def test_a_prune_waits_for_no_load_and_a_load_for_no_prune(site: BundleSite, tmp_path: Path) -> None:
    site.registry.break_(Silence(), method="HEAD", path=f"{MODEL_ONE}/blobs/", times=1)
    first = a_load(site, tmp_path)
    wait_until_struck(site.registry)
    (tmp_path / "second").mkdir()

    refused = prune(site, tmp_path / "second", "--keep-loaded", "--delete").ended()

    assert (refused.reason, refused.code) == ("LoadInProgress", 1), refused
    site.registry.heal()
    assert first.ended().code == 0
    site.assert_loaded()
    assert COMMIT_ONE in {root.tag for root in site.tagged()}


def test_lists_are_read_page_after_page(site: BundleSite, monkeypatch: pytest.MonkeyPatch) -> None:
    options = PruneOptions(access=Access(plain_http=True), keep_tags=(f"*:{COMMIT_TWO}",))
    target = OciReference.parse(site.target)
    whole = registry_prune.prune(target, options, Progress())
    monkeypatch.setattr(catalogue, "PAGE_ENTRIES", 1)
    site.registry.asked.clear()

    assert registry_prune.prune(target, options, Progress()) == whole

    assert [artifact.tags for artifact in whole.doomed if COMMIT_ONE in artifact.tags]
    assert site.registry.count("GET", "_catalog?") > 4
    assert site.registry.count("GET", "last=") > 4


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (f"models/a@sha256:{'0' * 64}", f"r:5/models/a@sha256:{'0' * 64}"),
        ("models/a:v1", "r:5/models/a:v1"),
        ("r:5/models/a:v1", "r:5/models/a:v1"),
        ("oci://r:5/models/a:v1", "r:5/models/a:v1"),
        ("models/a", None),
        ("", None),
        ("models/../a:v1", None),
        ("models/a@sha256:0", None),
    ],
)
def test_what_is_in_use_is_told_as_manifests_write_it(text: str, name: str | None) -> None:
    try:
        assert registry_prune.keep_reference(text, "r:5").name == name
    except InvalidReference:
        assert name is None
