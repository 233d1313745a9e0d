# SPDX-License-Identifier: Apache-2.0
"""A policy scanner over everything that the chart renders, the pods of models and the operator's Jobs.

It has no opinion of ours in it: a finding is either gone or explained in docs/security.md, and an explanation
without a finding is a lie. Whether every field is one is the API server's word, asked strictly in
tests/controlplane/test_chart_rbac.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dev import scanner
from sovereign_operator.desired.fetch_job import Fetch, fetch_job
from sovereign_operator.desired.mirror_job import mirror_job
from sovereign_operator.desired.network_policy import policies
from tests.unit.charts.rendering import NAMESPACE, ROOT, Manifest, render
from tests.unit.operator.builders import DIGEST, a_config, a_model, an_example

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first run installs the scanner

EVERYTHING: Manifest = {
    "clusterMode": True,
    "nodeCache": {"enabled": True, "namespaces": ["models"]},
    "externalSources": {"allowed": True},
    "registry": {"verification": {"enabled": True, "repair": True}, "pruning": {"enabled": True}},
    "prometheus": {"namespace": "monitoring"},
}
_ROW = re.compile(r"^\| `(CKV2?_K8S_[0-9]+)` \|", re.MULTILINE)


def models() -> Iterator[Manifest]:
    """Head and workers of every example, as KubeRay gets them, and the policies that stand before them."""
    for golden in sorted((ROOT / "tests/golden/rayservice").glob("*.yaml")):
        config = yaml.safe_load(golden.read_text())["spec"]["rayClusterConfig"]
        groups = {"head": config["headGroupSpec"], "worker": config["workerGroupSpecs"][0]}
        for role, group in groups.items():
            template = group["template"]
            metadata = {"name": f"{golden.stem}-{role}", "namespace": "models", **template["metadata"]}
            yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        yield from policies(
            an_example(golden.stem.removesuffix("-rdma").removesuffix("-node-cache")), a_config()
        )


def jobs() -> Iterator[Manifest]:
    """What the operator runs in the release's namespace: a mirror, and a fetch to a node."""
    model, config = a_model(), a_config(nodeCache={})
    assert config.node_cache is not None
    fetch = Fetch("models", "gpu-a", f"models/org/name@{DIGEST}")
    yield mirror_job(model, config)
    yield fetch_job(fetch, model, config, config.node_cache)
    yield from (m for m in render(values=EVERYTHING).of("NetworkPolicy"))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[scanner.Finding, ...]:
    folder = tmp_path_factory.mktemp("rendered")
    files: dict[str, list[Manifest]] = {
        "default.yaml": list(render().manifests),
        "everything.yaml": list(render(values=EVERYTHING).manifests),
        "models.yaml": list(models()),
        "jobs.yaml": list(jobs()),
    }
    for name, manifests in files.items():
        (folder / name).write_text(yaml.safe_dump_all(manifests))
    return scanner.findings([folder / name for name in files])


def test_every_finding_is_explained_and_nothing_else_is(found: tuple[scanner.Finding, ...]) -> None:
    explained = set(_ROW.findall((ROOT / "docs/security.md").read_text()))
    assert {finding.check for finding in found} == explained, "\n".join(map(str, found))


def test_the_scanner_can_find_something(tmp_path: Path) -> None:
    """It would pass everything if it read nothing."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "bad", "namespace": NAMESPACE},
        "spec": {"hostNetwork": True, "containers": [{"name": "c", "image": "a:latest"}]},
    }
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(pod))
    checks = {finding.check for finding in scanner.findings([tmp_path / "bad.yaml"])}
    assert {"CKV_K8S_19", "CKV_K8S_43"} <= checks  # the node's network; no digest
