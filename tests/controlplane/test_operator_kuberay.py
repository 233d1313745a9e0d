# SPDX-License-Identifier: Apache-2.0
"""KubeRay absent, too old, installed later and removed again: a condition each time, and no restart.

The definitions are cluster-wide, so this file has a control plane of its own.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dev.cluster import Cluster, down, up
from tests.controlplane.api_server import condition, eventually, reason
from tests.controlplane.operator_site import REVISION, ROOT, Site, apply_crd, install_kuberay

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(600)]


@pytest.fixture
def lonely_control_plane() -> Iterator[Cluster]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    try:
        yield up(name)
    finally:
        down(name)


@pytest.fixture
def site(lonely_control_plane: Cluster, tmp_path: Path) -> Iterator[Site]:
    with Site.opened(lonely_control_plane, tmp_path, kuberay=False) as one:
        yield one


def an_old_kuberay() -> list[dict[str, object]]:
    """Definitions as KubeRay before 1.7 had them: without authOptions."""
    text = (ROOT / "dev" / "kuberay" / "crds.yaml").read_text()
    old = copy.deepcopy([document for document in yaml.safe_load_all(text) if document])
    for definition in old:
        schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        config = schema.get("properties", {}).get("rayClusterConfig", {})
        config.get("properties", {}).pop("authOptions", None)
    return old


def test_kuberay_is_noticed_without_a_restart_whenever_it_comes(site: Site) -> None:
    site.registry.publish("models/org/tiny", REVISION)
    site.add_node()
    with site.operator() as operator:
        pid = operator.pid
        site.create_model()
        model = site.until("Ready", "KubeRayMissing")
        assert reason(model, "Serving") == reason(model, "Stalled") == "KubeRayMissing"
        assert condition(model, "Mirrored")["status"] == "True"
        assert len(site.policies()) >= 5

        for definition in an_old_kuberay():
            apply_crd(site.api, definition)
        site.until("Serving", "KubeRayTooOld", seconds=120)

        for definition in an_old_kuberay():
            name = definition["metadata"]["name"]  # type: ignore[index]
            site.api.delete("CustomResourceDefinition", None, name)
            eventually(lambda: not site.api.get("CustomResourceDefinition", None, name), "it is gone")  # noqa: B023
        install_kuberay(site.api)
        eventually(lambda: site.player().service(), "the RayService is there", 150)
        site.player().start()  # seen only by the watches, which did not exist at first
        site.until("Ready", "AllChecksPassed", seconds=120)
        assert operator.pid == pid
        assert operator.is_alive()
