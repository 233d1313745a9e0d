# SPDX-License-Identifier: Apache-2.0
"""A hub with one tiny model, a registry double, and options that do not wait long."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from dev.hub import HubServer
from sovereign_airgap.access import Access
from sovereign_airgap.bundle import load as loading
from sovereign_airgap.bundle.create import CreateOptions
from sovereign_airgap.bundle.load import Loaded, LoadOptions
from sovereign_airgap.bundle.opening import open_bundle
from sovereign_airgap.mirror import MirrorOptions
from sovereign_airgap.pace import Patience
from sovereign_airgap.progress import Progress
from sovereign_airgap.pull import PullOptions
from sovereign_airgap.reference import HubReference, OciReference
from tests.unit.airgap.bundles import a_bundle
from tests.unit.airgap.cache_node import Node
from tests.unit.airgap.creations import Connected, two_models
from tests.unit.airgap.loading import WIDTH, Load
from tests.unit.airgap.models import REPO, a_repository
from tests.unit.airgap.registry_double import RegistryDouble

# A slow machine is no defect, and what was found once belongs into a test of its own.
settings.register_profile(
    "steady", deadline=None, database=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")

QUICK = Patience(attempts=4, first_pause=0.01, longest_pause=0.05, stall=2.0, connect=2.0)


@pytest.fixture(autouse=True)
def no_system_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is signed by them, and reading them costs more than a whole test."""
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent.pem")


@pytest.fixture
def no_docker_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "no-docker"))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    return a_repository(tmp_path / "hub", width=512)


@pytest.fixture
def hub(files: dict[str, bytes], tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def registry(no_docker_config: None) -> Iterator[RegistryDouble]:
    with RegistryDouble() as double:
        yield double


@pytest.fixture(scope="session")
def pristine_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With shards that are larger than what is sent in one piece."""
    return a_bundle(tmp_path_factory.mktemp("pristine") / "bundle", width=WIDTH)


@pytest.fixture
def bundle(pristine_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine_bundle, tmp_path / "bundle")


@pytest.fixture
def place(no_docker_config: None) -> Iterator[RegistryDouble]:
    """Where bundles are loaded into: a registry that keeps its repositories apart."""
    with RegistryDouble(scoped=True) as double:
        yield double


@pytest.fixture
def load_options() -> LoadOptions:
    return LoadOptions(access=Access(plain_http=True), patience=QUICK, chunk=256 * 1024)


@pytest.fixture
def load(place: RegistryDouble, load_options: LoadOptions) -> Load:
    def call(bundle: Path, prefix: str = "", **changes: object) -> Loaded:
        wanted = dataclasses.replace(load_options, **changes)  # type: ignore[arg-type]
        return loading.load(open_bundle(bundle), OciReference(place.host, prefix), wanted, Progress())

    return call


@pytest.fixture
def source(hub: HubServer) -> HubReference:
    return HubReference(REPO, hub.commit(REPO))


@pytest.fixture
def target(registry: RegistryDouble) -> OciReference:
    return OciReference(registry.host)


@pytest.fixture
def options(hub: HubServer) -> MirrorOptions:
    return MirrorOptions(
        access=Access(plain_http=True), endpoint=hub.endpoint, patience=QUICK, chunk=8 * 1024
    )


@pytest.fixture
def pull_options() -> PullOptions:
    return PullOptions(access=Access(plain_http=True), patience=QUICK)


@pytest.fixture
def node(registry: RegistryDouble, pull_options: PullOptions, tmp_path: Path) -> Node:
    (tmp_path / "cache").mkdir()
    return Node(registry, pull_options, tmp_path / "cache")


@pytest.fixture
def models(tmp_path: Path) -> dict[str, bytes]:
    """The files of the first of two models that share a shard; both are on the hub."""
    return two_models(tmp_path / "hub")


@pytest.fixture
def side(models: dict[str, bytes], registry: RegistryDouble, tmp_path: Path) -> Iterator[Connected]:
    with HubServer(tmp_path / "hub") as hub:
        options = CreateOptions(access=Access(plain_http=True), endpoint=hub.endpoint, patience=QUICK)
        yield Connected(hub, registry, tmp_path, options)
