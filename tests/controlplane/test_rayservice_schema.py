# SPDX-License-Identifier: Apache-2.0
"""Our RayService against KubeRay's published schema, on the real API server.

The schema is not part of this repository: SOVEREIGN_KUBERAY_CRDS names a folder with KubeRay's CRDs, or it
lies in ../shared/kuberay-crds beside the repository. Without it these tests are skipped, and say so.
"""

from __future__ import annotations

import copy
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dev.cluster import down, up
from dev.kubectl import Kubectl
from sovereign_operator.desired.rendered import contains
from sovereign_operator.values import Manifest
from tests.controlplane.definitions import serve
from tests.unit.operator.builders import ROOT, an_example
from tests.unit.operator.test_ray_service import EXAMPLES, rendered
from tests.unit.operator.test_weights import cached

SERVICES = {name: rendered(an_example(name), name) for name in EXAMPLES} | {"node cache": cached()}
FOLDER = Path(os.environ.get("SOVEREIGN_KUBERAY_CRDS", ROOT.parent / "shared" / "kuberay-crds"))
pytestmark = [
    pytest.mark.controlplane,
    pytest.mark.timeout(600),  # definitions of a megabyte, and a control plane of its own
    pytest.mark.skipif(
        not FOLDER.is_dir(),
        reason=f"KubeRay's CRDs are not in {FOLDER.name}; set SOVEREIGN_KUBERAY_CRDS to a folder with them",
    ),
]


@pytest.fixture(scope="module")
def kuberay() -> Iterator[Kubectl]:
    """An API server of its own, because others serve the stand-in's definitions under the same names."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    try:
        kubectl = Kubectl(tuple(up(name).kubectl))
        for kind in ("rayclusters", "rayservices"):
            serve(kubectl, FOLDER / f"ray.io_{kind}.yaml", f"{kind}.ray.io")
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        kubectl.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "models", "labels": labels}}
        )
        yield kubectl
    finally:
        down(name)


def apply(kubectl: Kubectl, manifest: Manifest) -> Manifest:
    """A strict server-side apply: an unknown field is an error, not something that is dropped."""
    words = [
        "apply", "--server-side", "--field-manager=sovereign-operator", "--force-conflicts",
        "--validate=strict", "-o", "json", "-f", "-",
    ]  # fmt: skip
    answer: Manifest = json.loads(kubectl(*words, stdin=json.dumps(manifest)))
    return answer


@pytest.mark.parametrize("name", SERVICES)
def test_kuberays_schema_takes_the_service_whole_and_a_second_apply_changes_nothing(
    name: str, kuberay: Kubectl
) -> None:
    manifest = copy.deepcopy(SERVICES[name])
    live = apply(kuberay, manifest)
    assert contains(live, manifest)
    again = apply(kuberay, manifest)
    assert again["metadata"]["generation"] == live["metadata"]["generation"]
    assert again["metadata"]["resourceVersion"] == live["metadata"]["resourceVersion"]


@pytest.mark.parametrize("name", SERVICES)
def test_an_update_of_the_whole_object_by_kuberay_is_no_difference_to_us(name: str, kuberay: Kubectl) -> None:
    """KubeRay adds its finalizer by an Update and becomes a manager of fields that we rendered."""
    manifest = copy.deepcopy(SERVICES[name])
    live = apply(kuberay, manifest)
    live["metadata"].pop("managedFields", None)
    live["metadata"].setdefault("finalizers", []).append("ray.io/test")
    kuberay("replace", "-f", "-", stdin=json.dumps(live))
    assert contains(kuberay.get("rayservice", live["metadata"]["name"], "-n", "models"), manifest)
    apply(kuberay, manifest)
    patch = json.dumps({"metadata": {"finalizers": None}})
    kuberay("patch", "rayservice", live["metadata"]["name"], "-n", "models", "--type=merge", "-p", patch)


@pytest.mark.parametrize("name", SERVICES)
def test_its_pods_pass_restricted_admission_unchanged(name: str, kuberay: Kubectl) -> None:
    cluster = SERVICES[name]["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        template = group["template"]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"generateName": "pod-", "namespace": "models", **template["metadata"]},
            "spec": template["spec"],
        }
        words = ("create", "--dry-run=server", "--validate=strict", "-o", "json", "-f", "-")
        answer = kuberay(*words, stdin=json.dumps(pod))
        # What comes back contains what was sent: every quantity is spelt as the API server spells it. Only to
        # the tolerations does admission add two of its own.
        sent = {key: value for key, value in template["spec"].items() if key != "tolerations"}
        assert contains(json.loads(answer)["spec"], sent)


def test_a_misspelt_field_would_be_seen(kuberay: Kubectl) -> None:
    manifest = rendered(an_example("tiny-moe"), "tiny-moe")
    manifest["spec"]["rayClusterConfig"]["authOption"] = {"mode": "token"}
    with pytest.raises(RuntimeError, match="authOption"):
        apply(kuberay, yaml.safe_load(yaml.safe_dump(manifest)))
