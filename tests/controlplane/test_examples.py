# SPDX-License-Identifier: Apache-2.0
"""Every file of examples/ on the real API server: taken as it stands, and sealed by policies that it takes
too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dev.cluster import Cluster
from dev.kubectl import Kubectl
from sovereign_operator.api import SovereignModel
from sovereign_operator.crd import CRD_FILE, CRD_NAME
from sovereign_operator.desired.mirror_job import mirror_job
from sovereign_operator.desired.network_policy import policies
from sovereign_operator.desired.rendered import contains
from sovereign_operator.values import Manifest
from tests.controlplane.definitions import serve
from tests.unit.operator.builders import EXAMPLES, ROOT, a_config

pytestmark = pytest.mark.controlplane

FILES = sorted(EXAMPLES.glob("*.yaml"))


@pytest.fixture(scope="module")
def served(control_plane: Cluster) -> Iterator[Kubectl]:
    kubectl = Kubectl(tuple(control_plane.kubectl))
    serve(kubectl, ROOT / "crds" / CRD_FILE, CRD_NAME)
    for name in ("models", "sovereign-system"):
        kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield kubectl
    kubectl("delete", "smodel", "--all", "-n", "models")


def dry_run(kubectl: Kubectl, manifest: Manifest) -> Manifest:
    answer: Manifest = json.loads(
        kubectl(
            "apply", "--server-side", "--dry-run=server", "--validate=strict", "-o", "json", "-f", "-",
            stdin=json.dumps(manifest),
        )
    )  # fmt: skip
    return answer


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.stem))
def test_an_example_is_taken_as_it_stands(path: Path, served: Kubectl) -> None:
    served("apply", "--server-side", "--validate=strict", "-f", str(path))
    manifest = yaml.safe_load(path.read_text(encoding="utf-8"))
    live = served.get("smodel", manifest["metadata"]["name"], "-n", "models")
    assert contains(live["spec"], manifest["spec"])
    # What the operator reads from the API server is what it reads from the file: the defaults are the same.
    body = {"metadata": live["metadata"], "spec": manifest["spec"]}
    assert SovereignModel.parse(live).spec == SovereignModel.parse(body).spec


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.stem))
def test_its_policies_and_its_job_come_back_as_they_were_rendered(path: Path, served: Kubectl) -> None:
    manifest = yaml.safe_load(path.read_text(encoding="utf-8"))
    manifest["metadata"]["uid"] = "00000000-0000-0000-0000-000000000000"
    model = SovereignModel.parse(manifest)
    for child in (*policies(model, a_config()), mirror_job(model, a_config())):
        assert contains(dry_run(served, child), child), child["metadata"]["name"]


def test_there_are_the_examples_that_the_documentation_names() -> None:
    assert [path.stem for path in FILES] == [
        "deepseek-v3", "mistral-medium-3.5", "mistral-small-4", "mixtral-8x7b", "tiny-moe",
    ]  # fmt: skip
