# SPDX-License-Identifier: Apache-2.0
"""Pods that have their weights from their node's cache: what is mounted, what holds it, and where they go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from dev.kuberay.pods import Host, head_pod, worker_pod
from sovereign_airgap.commands.cache_hold import cache_hold_command
from sovereign_operator.api import ANNOTATION_ARTIFACT, SovereignModel
from sovereign_operator.config import OperatorConfig
from sovereign_operator.desired.ray_service import ray_service
from sovereign_operator.desired.rendered import defects, rendered_hash
from sovereign_operator.placement import plan
from sovereign_operator.values import Manifest, Placement
from tests.conftest import Golden
from tests.unit.kuberay_double.objects import a_cluster
from tests.unit.operator.builders import (
    DIGEST,
    a_model,
    a_node,
    a_sealing_config,
    an_artifact,
    an_example,
    the_facts,
    with_node_cache,
)
from tests.unit.operator.test_ray_service import Readable, containers_of, example_nodes, groups_of

CONFIG = a_sealing_config(nodeCache={})


def cached(
    name: str = "mixtral-8x7b",
    model: SovereignModel | None = None,
    config: OperatorConfig = CONFIG,
    chosen: tuple[str, ...] = ("a", "b"),
) -> Manifest:
    """An example with its weights on its nodes."""
    model = with_node_cache(model or an_example(name))
    placement = plan(model.spec, the_facts(name), example_nodes(name), config)
    assert isinstance(placement, Placement), placement
    return ray_service(model, an_artifact(name), replace(placement, chosen=chosen), config)


def sidecar_of(group: Manifest) -> Manifest:
    found: Manifest = group["template"]["spec"]["initContainers"][-1]
    return found


def test_an_example_renders_to_its_golden(golden: Golden) -> None:
    text = yaml.dump(cached(), Dumper=Readable, sort_keys=False, width=110)
    golden("rayservice/mixtral-8x7b-node-cache.yaml", f"# SPDX-License-Identifier: Apache-2.0\n{text}")


def test_nothing_changes_on_the_way_through_the_api_server() -> None:
    assert defects(cached()) == []


def test_the_claim_is_the_only_volume_that_lives_longer_than_the_pod_and_cannot_be_written() -> None:
    for group in groups_of(cached()):
        spec = group["template"]["spec"]
        kept = [each for each in spec["volumes"] if not {"emptyDir", "downwardAPI"} & each.keys()]
        claim = {"claimName": "sovereign-cache", "readOnly": True}
        assert kept == [{"name": "cache", "persistentVolumeClaim": claim}]
        mounts = [m for c in containers_of(group) for m in c.get("volumeMounts", ()) if m["name"] == "cache"]
        assert len(mounts) == 2
        assert all(mount["readOnly"] for mount in mounts)


def test_ray_sees_the_one_artifact_and_the_sidecar_the_whole_folder_of_the_tenant() -> None:
    for group in groups_of(cached()):
        (ray,) = group["template"]["spec"]["containers"]
        (mount,) = [each for each in ray["volumeMounts"] if each["mountPath"] == "/weights"]
        assert mount["subPath"] == DIGEST.replace(":", "-")
        (folder,) = [each for each in sidecar_of(group)["volumeMounts"] if each["name"] == "cache"]
        assert "subPath" not in folder


def test_a_sidecar_holds_them_until_the_pod_ends_and_ray_starts_after_it_has_them() -> None:
    head, workers = (sidecar_of(group) for group in groups_of(cached()))
    assert workers["args"] == [
        "cache", "hold", "--tenant-dir", "/cache", "--manifest", DIGEST,
        "--held-file", "/home/sovereign/weights-held",
        "--verify", "changed", "--seconds", "120", "--result-file", "/dev/termination-log",
    ]  # fmt: skip
    assert head["args"] == [*workers["args"][:8], "--config-only", *workers["args"][8:]]
    for sidecar in (head, workers):
        assert sidecar["name"] == "weights"
        assert sidecar["restartPolicy"] == "Always"
        probe = sidecar["startupProbe"]
        assert probe["exec"]["command"] == ["test", "-e", "/home/sovereign/weights-held"]
        assert probe["periodSeconds"] * probe["failureThreshold"] == 24 * 3600, "hashing takes its time"
        assert sidecar["terminationMessagePath"] == "/dev/termination-log"
        assert sidecar["securityContext"]["runAsNonRoot"] is True


def test_the_data_plane_understands_what_the_sidecar_is_told() -> None:
    for group, small in zip(groups_of(cached()), (True, False), strict=True):
        arguments = sidecar_of(group)["args"]
        assert arguments[:2] == ["cache", "hold"]
        understood = cache_hold_command.make_context("hold", arguments[2:]).params
        assert str(understood["manifest"]) == DIGEST
        assert (understood["config_only"], understood["verify"]) == (small, "changed")
        probe = sidecar_of(group)["startupProbe"]["exec"]["command"]
        assert str(understood["held_file"]) == probe[-1]


def test_every_byte_is_checked_again_where_the_model_asks_for_it() -> None:
    config = CONFIG
    model = with_node_cache(a_model(), verify="always")
    placement = plan(model.spec, the_facts(), [a_node()], config)
    assert isinstance(placement, Placement)
    for group in groups_of(ray_service(model, an_artifact(), placement, config)):
        arguments = sidecar_of(group)["args"]
        assert arguments[arguments.index("--verify") + 1] == "always"


def test_nothing_starts_before_the_seal_and_nothing_knows_of_the_registry() -> None:
    registry = {"host": "r:5000", "writer": "r:5001", "caConfigMap": "site-ca"}
    for group in groups_of(cached(config=a_sealing_config(nodeCache={}, registry=registry))):
        names = [each["name"] for each in group["template"]["spec"]["initContainers"]]
        assert names == ["sealed", "weights"]
        assert "r:5000" not in str(group)
        assert "site-ca" not in str(group)


def test_pods_prefer_the_nodes_that_have_the_weights_by_name() -> None:
    for group in groups_of(cached(chosen=("b", "a"))):
        affinity = group["template"]["spec"]["affinity"]["nodeAffinity"]
        assert list(affinity) == ["preferredDuringSchedulingIgnoredDuringExecution"]
        terms = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
        assert [term["weight"] for term in terms] == [100, 100]
        assert [term["preference"]["matchFields"][0]["values"] for term in terms] == [["a"], ["b"]]
    for group in groups_of(cached(chosen=())):
        assert "affinity" not in group["template"]["spec"]


def test_pods_say_what_they_need_so_that_it_is_fetched_where_they_land() -> None:
    for group in groups_of(cached()):
        marks = group["template"]["metadata"]["annotations"]
        assert marks[ANNOTATION_ARTIFACT] == an_artifact().reference


def test_another_artifact_is_another_cluster() -> None:
    model = with_node_cache(an_example("mixtral-8x7b"))
    placement = plan(model.spec, the_facts(), example_nodes("mixtral-8x7b"), CONFIG)
    assert isinstance(placement, Placement)
    other = an_artifact(reference=f"models/elsewhere@{DIGEST}")
    one, two = (ray_service(model, each, placement, CONFIG) for each in (an_artifact(), other))
    assert rendered_hash(one["spec"]["rayClusterConfig"]) != rendered_hash(two["spec"]["rayClusterConfig"])


def test_a_cache_that_is_not_configured_is_an_error_and_no_pod() -> None:
    with pytest.raises(ValueError, match="nodeCache"):
        cached(config=a_sealing_config())


@pytest.mark.parametrize("pod", ["head", "worker"])
def test_kuberay_leaves_the_sidecar_what_it_is(pod: str) -> None:
    """Its own init container comes last, with the Ray container's mounts: after the weights are there."""
    service = cached()
    service["metadata"] |= {"uid": "u-1", "generation": 1}
    cluster = a_cluster(service)
    group = cluster["spec"]["workerGroupSpecs"][0]
    made: dict[str, Any] = head_pod(cluster) if pod == "head" else worker_pod(cluster, group, Host(0))
    containers = made["spec"]["initContainers"]
    names = [each["name"] for each in containers]
    assert names == ["sealed", "weights"] + (["wait-gcs-ready"] if pod == "worker" else [])
    assert containers[1]["restartPolicy"] == "Always"
    assert containers[1]["startupProbe"]
    if pod == "worker":
        assert "restartPolicy" not in containers[2]
        assert [m for m in containers[2]["volumeMounts"] if m.get("subPath", "").startswith("sha256-")]
