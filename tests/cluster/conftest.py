# SPDX-License-Identifier: Apache-2.0
"""A real node for the tests here: one embedded cluster for each test process, gone afterwards."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator

import pytest

from dev import stack
from dev.cluster import Cluster, down, up
from dev.cluster.node import impossible
from dev.kubectl import Kubectl
from tests.cluster import witness
from tests.cluster.audit import AuditLog


@pytest.fixture(scope="session")
def node_cluster() -> Iterator[Cluster]:
    """An embedded cluster with a node; skipped with the reason where this machine cannot run one.

    SOVEREIGN_KEEP=1 leaves it running and says so.
    """
    if reason := impossible():
        pytest.skip(reason)
    name = f"test-{uuid.uuid4().hex[:8]}"
    try:
        yield up(name, node=True)
    finally:
        if os.environ.get("SOVEREIGN_KEEP"):
            sys.stderr.write(f"\nkept: end it with `python -m dev cluster down --name {name}`\n")
        else:
            down(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The test that ends the cluster which all share runs after all of them, whatever its file is called."""
    items.sort(key=lambda item: item.name == "test_down_leaves_the_machine_as_it_was")


@pytest.fixture(scope="session")
def image(node_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The witness program as an image in the node's registry, by digest."""
    return witness.push(node_cluster, tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="session")
def kubectl(node_cluster: Cluster) -> Kubectl:
    return Kubectl(tuple(node_cluster.kubectl))


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """A namespace for one test, without pod security labels; its deletion is not waited for."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def installed(node_cluster: Cluster) -> stack.Stack:
    """The whole product on the node, as `make demo` installs it, only that it resyncs every 10 s."""
    target = stack.embedded_target(node_cluster)
    return stack.install(target, lambda line: sys.stderr.write(f"{line}\n"), {"resyncSeconds": 10})


@pytest.fixture
def audit(node_cluster: Cluster) -> AuditLog:
    return AuditLog(node_cluster.audit_log)
