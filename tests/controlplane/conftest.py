# SPDX-License-Identifier: Apache-2.0
"""A real API server for the tests here: one embedded control plane for each test process, gone afterwards."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dev.cluster import Cluster, down, up
from dev.kubectl import Kubectl
from tests.controlplane.operator_site import Site

# Opens a dynamic client (kubernetes.aio) against the control plane: `async with kubernetes() as client`.
ClientFactory = Callable[[], AbstractAsyncContextManager[Any]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The limit of a test counts its fixtures, and whichever comes first in a process starts a control plane.

    Three start at once on two cores; everything in here that waits has a shorter bound of its own.
    """
    for item in items:
        if item.get_closest_marker("controlplane") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def control_plane() -> Iterator[Cluster]:
    """An embedded control plane without our CRDs. SOVEREIGN_KEEP=1 leaves it running and says so."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    try:
        yield up(name)
    finally:
        if os.environ.get("SOVEREIGN_KEEP"):
            sys.stderr.write(f"\nkept: end it with `python -m dev cluster down --name {name}`\n")
        else:
            down(name)


@pytest.fixture
def site(control_plane: Cluster, tmp_path: Path) -> Iterator[Site]:
    """Where the operator runs against that API server, with one node; modules that need another say so."""
    with Site.opened(control_plane, tmp_path) as one:
        one.add_node()
        yield one


@pytest.fixture
def kubectl(control_plane: Cluster) -> Kubectl:
    return Kubectl(tuple(control_plane.kubectl))


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """A namespace for one test; its deletion is asked for and not waited for."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def kubernetes(control_plane: Cluster) -> ClientFactory:
    """A factory of dynamic clients that know this control plane and no other context."""
    from kubernetes.aio import client, config, dynamic

    @asynccontextmanager
    async def opened() -> AsyncIterator[Any]:
        configuration = client.Configuration()
        await config.load_kube_config(str(control_plane.kubeconfig), client_configuration=configuration)
        async with client.ApiClient(configuration) as api:
            yield await dynamic.DynamicClient(api)

    return opened
