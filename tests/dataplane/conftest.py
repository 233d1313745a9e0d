# SPDX-License-Identifier: Apache-2.0
"""The data plane against a real registry (distribution) on loopback; skipped where it cannot be built."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.binaries import BuildFailed, binary
from dev.registry import LocalRegistry
from tests.dataplane.bundle_site import WIDTH, BundleSite, a_bundle_site
from tests.dataplane.cache_site import NodeSite
from tests.dataplane.models import a_model
from tests.dataplane.site import Site, a_site
from tests.unit.airgap.bundles import a_bundle


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRegistry]:
    try:
        binary("registry")
    except BuildFailed as failure:
        pytest.skip(f"the registry cannot be built here: {failure}")
    with LocalRegistry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture
def repository(request: pytest.FixtureRequest) -> str:
    """A name of the test's own: the registry is shared."""
    words = re.findall("[a-z0-9]+", request.node.nodeid.rpartition("::")[2].lower())
    return "models/" + "-".join(words)[:200].strip("-")


@pytest.fixture
def site(tmp_path: Path, registry: LocalRegistry, repository: str) -> Iterator[Site]:
    with a_site(tmp_path, a_model(seed=repository), registry, repository) as made:
        yield made


@pytest.fixture(scope="session")
def pristine_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_bundle(tmp_path_factory.mktemp("pristine") / "bundle", width=WIDTH)


@pytest.fixture
def bundle(pristine_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine_bundle, tmp_path / "bundle")


@pytest.fixture
def bundle_site(bundle: Path, registry: LocalRegistry, repository: str) -> Iterator[BundleSite]:
    with a_bundle_site(bundle, registry, repository) as made:
        yield made


@pytest.fixture
def own_site(bundle: Path, registry: LocalRegistry, tmp_path: Path) -> Iterator[BundleSite]:
    """With a registry of the test's own, whose disk and process it may harm."""
    with LocalRegistry(tmp_path / "registry") as server, a_bundle_site(bundle, server, "own") as made:
        yield made


@pytest.fixture
def node(site: Site, tmp_path: Path) -> NodeSite:
    node = NodeSite(site, tmp_path)
    node.root.mkdir()
    return node
