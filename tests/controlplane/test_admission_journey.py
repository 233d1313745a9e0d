# SPDX-License-Identifier: Apache-2.0
"""The operator in a sealed namespace: what it does there passes its own chart's admission policies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dev.cluster import Cluster
from tests.cluster.audit import AuditLog
from tests.controlplane.admission_site import DIGEST, KUBERAY, a_policy, in_force, rendered
from tests.controlplane.api_server import ApiServer, eventually
from tests.controlplane.kuberay_player import KubeRayPlayer
from tests.controlplane.operator_site import Site

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(600)]

SEALED = {"metadata": {"labels": {"sovereign.dev/sealed": "true"}}}


class AsKubeRay(ApiServer):
    """Everything is asked as KubeRay's service account, with every right: only admission can say no."""

    def _asked(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Any:
        if method == "POST" and path.endswith("/pods"):
            # The player's pods never run, and it names their image as it likes.
            for container in body["spec"]["containers"]:
                container["image"] = f"none.invalid/none@{DIGEST}"
        user = {"Impersonate-User": KUBERAY, "Impersonate-Group": "system:masters"}
        return super()._asked(method, path, body, headers | user)


class SealedSite(Site):
    """A site whose models are in a namespace under seal."""

    kuberay: AsKubeRay

    def player(self, name: str = "tiny") -> KubeRayPlayer:
        return KubeRayPlayer(self.kuberay, self.models, name)


@pytest.fixture
def site(control_plane: Cluster, tmp_path: Path) -> Iterator[Site]:
    with SealedSite.opened(control_plane, tmp_path) as site:
        assert isinstance(site, SealedSite)
        site.kuberay = AsKubeRay(control_plane.kubeconfig)
        site.add_node()
        site.api.patch("Namespace", None, site.models, SEALED)
        site.settings["admission"] = True
        with in_force(site.api, rendered(system=site.system)):
            eventually(lambda: not _is_taken(site), "the policies decide", 60)
            yield site
        site.kuberay.close()


def _is_taken(site: Site) -> bool:
    """Whether somebody's own network policy would be taken: the admin's, who may do everything else."""
    policy = a_policy()
    policy["metadata"]["namespace"] = site.models
    try:
        site.api.call("POST", site.api.path("NetworkPolicy", site.models) + "?dryRun=All", policy)
    except AssertionError as refused:
        assert "sovereign-sealed-network-policies" in str(refused)
        return False
    return True


def test_a_model_is_served_suspended_and_deleted_under_the_policies(site: Site) -> None:
    audit = AuditLog(site.cluster.audit_log)
    audit.mark()
    with site.operator():
        site.serve()
        site.api.patch("SovereignModel", site.models, "tiny", {"spec": {"suspend": True}})
        eventually(lambda: site.player().service()["spec"].get("suspend"), "the RayService is suspended")
        site.player().stop()
        site.api.delete("SovereignModel", site.models, "tiny")
        eventually(lambda: not site.policies(), "the policies are gone")
        eventually(lambda: not site.model(), "the model is gone")
    refused = [one for one in audit.by(site.user) if "ValidatingAdmissionPolicy" in one.message]
    assert refused == []


def test_the_namespace_goes_with_everything_in_it(site: Site) -> None:
    """The namespace controller and the garbage collector are the real ones."""
    with site.operator():
        site.serve()
        site.player().stop()
        site.api.delete("Namespace", None, site.models)
        eventually(lambda: not site.api.get("Namespace", None, site.models), "the namespace is gone", 120)
