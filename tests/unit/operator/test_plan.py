# SPDX-License-Identifier: Apache-2.0
"""The plan: what is done in which order, from the manifest to a served model and through its changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest

from sovereign_operator.api import ANNOTATION_CLUSTER, ANNOTATION_RENDERED
from sovereign_operator.kuberay import KubeRay
from sovereign_operator.rollout import Memo, first_difference
from sovereign_operator.values import Manifest, Unreadable
from sovereign_operator.world import (
    Action,
    Apply,
    Create,
    Delete,
    Hold,
    Release,
    Reseal,
    Strip,
    annotation,
    name_of,
)
from tests.unit.operator.builders import DIGEST, a_config, a_node, an_artifact
from tests.unit.operator.worlds import Universe, a_body, a_serving_universe

NEXT = "0123456789abcdef0123456789abcdef01234567"
NEXT_DIGEST = "sha256:" + "2e" * 32


def kinds(actions: list[Action]) -> list[str]:
    return [str(one.manifest["kind"]) for one in actions if isinstance(one, Apply | Create | Reseal | Delete)]


def a_next_source() -> dict[str, object]:
    return {"huggingFace": {"repo": "mistralai/Mixtral-8x7B-Instruct-v0.1", "revision": NEXT}}


def a_next_artifact() -> object:
    before = an_artifact()
    return replace(
        before, reference=before.reference.replace(DIGEST, NEXT_DIGEST), digest=NEXT_DIGEST, revision=NEXT
    )


def test_nothing_is_done_before_the_first_status_is_written() -> None:
    universe = Universe()
    decision = universe.step()
    assert decision.actions == ()
    assert decision.again == 0.0
    assert {c["status"] for c in universe.body["status"]["conditions"] if c["type"] != "Reconciling"} == {
        "Unknown"
    }


def test_the_finalizer_comes_before_the_first_child() -> None:
    universe = Universe()
    universe.step()
    actions = universe.step().actions
    assert isinstance(actions[0], Hold)
    assert isinstance(actions[1], Apply)


def test_the_ray_service_waits_until_every_policy_was_seen() -> None:
    universe = Universe()
    universe.mirrored()
    universe.step()
    first = universe.step()
    assert set(kinds(list(first.actions))) == {"NetworkPolicy"}
    second = universe.step()
    assert kinds(list(second.actions)) == ["RayService"]


def test_a_missing_policy_comes_back_before_any_change_of_the_ray_service() -> None:
    universe = a_serving_universe()
    name = name_of(universe.of("NetworkPolicy")[0])
    del universe.children["NetworkPolicy", name]
    universe.change(serving={**universe.body["spec"]["serving"], "maxModelLen": 64})
    first = universe.step()
    assert [(name_of(one.manifest), one.restores) for one in first.actions if isinstance(one, Apply)] == [
        (name, True)
    ]
    assert universe.reason() == "PolicyMissing"
    assert kinds(list(universe.step().actions)) == ["RayService"]


def _opens(spec: Manifest) -> None:
    spec["egress"] = [{}]


def _lets_in(spec: Manifest) -> None:
    spec["ingress"] = [{"ports": [{"port": 22, "protocol": "TCP"}]}]


def _selects_nobody(spec: Manifest) -> None:
    spec["podSelector"]["matchLabels"]["nobody"] = "has-this"


@pytest.mark.parametrize(
    ("tamper", "at"),
    [
        (_opens, ".spec.egress"),
        (_lets_in, ".spec.ingress"),
        (_selects_nobody, ".spec.podSelector.matchLabels.nobody"),
    ],
)
def test_what_somebody_adds_to_a_policy_of_ours_is_a_way_out_and_taken_away(
    tamper: Callable[[Manifest], None], at: str
) -> None:
    universe = a_serving_universe()
    policy = next(one for one in universe.of("NetworkPolicy") if "egress" not in one["spec"])
    rendered = copy.deepcopy(policy["spec"])
    tamper(policy["spec"])
    universe.step()
    (stripped,) = universe.done
    assert isinstance(stripped, Strip)
    assert stripped.drifted_at == at
    assert universe.reason() == "PolicyMissing"
    assert universe.children["NetworkPolicy", name_of(policy)]["spec"] == rendered
    universe.settle()
    assert universe.reason() == "AllChecksPassed"


def test_a_longer_list_in_a_rule_of_ours_is_put_back() -> None:
    universe = a_serving_universe()
    policy = next(one for one in universe.of("NetworkPolicy") if one["spec"].get("egress"))
    rendered = copy.deepcopy(policy["spec"])
    policy["spec"]["egress"][0]["to"][0]["namespaceSelector"] = {}
    universe.settle()
    assert universe.children["NetworkPolicy", name_of(policy)]["spec"] == rendered


def test_a_rayservice_that_somebody_suspended_is_resumed() -> None:
    universe = a_serving_universe()
    universe.service()["spec"]["suspend"] = True
    universe.stop_cluster()
    universe.step()
    assert any(isinstance(one, Strip) for one in universe.done)
    assert "Somebody suspended" in universe.condition("Serving")["message"]
    universe.settle()
    assert "suspend" not in universe.service()["spec"]


def test_facts_that_come_behind_the_manifest_are_looked_for_again() -> None:
    universe = Universe()
    del universe.body["spec"]["serving"]["parallelism"]  # so that the facts decide
    universe.mirrored(replace(an_artifact(), facts=None))
    decision = universe.settle()
    assert universe.reason() == "FactsMissing"
    assert decision.unsettled
    universe.mirrored()
    universe.settle()
    assert universe.condition("Placed")["status"] == "True"


def test_another_choice_of_files_is_no_recorded_artifact_while_the_registry_is_away() -> None:
    universe = a_serving_universe()
    hub = universe.body["spec"]["source"]["huggingFace"]
    universe.change(source={"huggingFace": {**hub, "exclude": ["*.bin"]}})
    universe.found = Unreadable("RegistryUnavailable", "It did not answer.")
    universe.step()
    assert universe.condition("Mirrored")["status"] == "Unknown"
    assert universe.condition("Ready")["status"] != "True"
    assert universe.condition("Serving")["status"] == "True", "what serves is left alone"


def test_a_policy_that_is_being_deleted_is_made_anew_and_one_of_others_waited_for() -> None:
    universe = a_serving_universe()
    policy = universe.of("NetworkPolicy")[0]
    policy["metadata"]["deletionTimestamp"] = "2026-01-31T12:00:00Z"
    assert isinstance(universe.decision().actions[0], Reseal)
    policy["metadata"]["finalizers"] = ["somebody.else/finalizer"]
    assert universe.decision().actions == ()


def test_surplus_policies_go_once_the_wanted_ones_are_in_force() -> None:
    universe = a_serving_universe()
    policy = universe.of("NetworkPolicy")[0]
    stray = {**policy, "metadata": {**policy["metadata"], "name": "mixtral-old"}}
    universe.children["NetworkPolicy", "mixtral-old"] = stray
    universe.step()
    assert [type(action) for action in universe.done] == [Delete, Release]
    assert ("NetworkPolicy", "mixtral-old") not in universe.children


def test_a_served_model_needs_nothing() -> None:
    universe = a_serving_universe()
    decision = universe.step()
    assert (decision.actions, decision.again, decision.unsettled) == ((), None, "")


def test_a_changed_revision_is_mirrored_and_verified_before_the_old_one_is_touched() -> None:
    universe = a_serving_universe()
    universe.change(source=a_next_source())
    universe.found = Universe().found
    universe.settle()
    assert kinds(universe.done) == ["Job"]
    assert universe.condition("Serving")["status"] == "True"
    assert universe.body["status"]["servingArtifact"] == DIGEST
    universe.mirrored(a_next_artifact())  # type: ignore[arg-type]
    universe.settle()
    assert universe.service()["spec"]["suspend"] is True
    assert universe.reason() == "Upgrading"
    universe.stop_cluster()
    universe.settle()
    assert "suspend" not in universe.service()["spec"]
    universe.start_cluster("two")
    universe.settle()
    assert universe.reason() == "AllChecksPassed"
    assert universe.body["status"]["servingArtifact"] == NEXT_DIGEST


def test_a_new_revision_that_fits_nowhere_leaves_the_old_one_serving() -> None:
    universe = a_serving_universe()
    universe.change(source=a_next_source())
    universe.mirrored(a_next_artifact())  # type: ignore[arg-type]
    universe.nodes = ()
    universe.settle()
    assert universe.reason() == "NoMatchingNodes"
    assert universe.condition("Serving")["status"] == "True"
    assert universe.done == []


def test_suspension_in_recreate_waits_for_pods_and_clusters() -> None:
    universe = a_serving_universe()
    universe.change(
        serving={**universe.body["spec"]["serving"], "engineArgs": {"seed": "1"}, "image": IMAGE_2}
    )
    universe.settle()
    del universe.children["RayCluster", "one"]
    assert universe.decision().actions == (), "pods are left"
    universe.stop_cluster()
    assert kinds(list(universe.decision().actions)) == ["RayService"]


IMAGE_2 = "registry.example/sovereign-serving@sha256:" + "3" * 64


def test_new_cluster_applies_at_once_and_is_ready_when_the_new_one_serves() -> None:
    universe = a_serving_universe(upgrade={"strategy": "newCluster"})
    universe.change(serving={**universe.body["spec"]["serving"], "image": IMAGE_2})
    universe.settle()
    assert "suspend" not in universe.service()["spec"]
    assert universe.reason() == "Upgrading"
    universe.serving("one")  # KubeRay has looked, the old cluster still serves
    universe.settle()
    assert universe.reason() == "Upgrading"
    universe.start_cluster("two")
    universe.settle()
    assert universe.reason() == "AllChecksPassed"


def test_replicas_alone_change_what_kuberay_hashes() -> None:
    """KubeRay mutes replicas and tolerations; our hash in the head's template is not muted."""
    universe = a_serving_universe(upgrade={"strategy": "newCluster"})

    def head() -> str:
        template = universe.service()["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]
        return str(template["metadata"]["annotations"][ANNOTATION_CLUSTER])

    before = head()
    universe.change(serving={**universe.body["spec"]["serving"], "replicas": 2})
    universe.settle()
    assert head() != before


def test_a_change_of_the_serve_config_alone_keeps_the_cluster() -> None:
    universe = a_serving_universe()
    before = universe.service()
    universe.change(serving={**universe.body["spec"]["serving"], "engineArgs": {"seed": "1"}})
    universe.settle()
    after = universe.service()
    assert "suspend" not in after["spec"]
    assert annotation(after, ANNOTATION_RENDERED) != annotation(before, ANNOTATION_RENDERED)
    assert annotation(after, ANNOTATION_CLUSTER) == annotation(before, ANNOTATION_CLUSTER)
    universe.serving("one")
    universe.settle()
    assert universe.reason() == "AllChecksPassed"


def test_a_cluster_that_kuberay_made_from_the_old_rendering_in_between_is_replaced() -> None:
    universe = a_serving_universe()
    universe.of("RayCluster")[0]["metadata"]["annotations"][ANNOTATION_CLUSTER] = "another"
    universe.step()
    assert universe.service()["spec"]["suspend"] is True


def test_drift_is_put_back_and_says_where() -> None:
    universe = a_serving_universe()
    universe.service()["spec"]["rayClusterConfig"]["rayVersion"] = "0.0.1"
    (action,) = universe.decision().actions
    assert isinstance(action, Apply)
    assert action.restores
    assert action.drifted_at == ".spec.rayClusterConfig.rayVersion"


def test_defaults_that_others_write_are_no_drift() -> None:
    universe = a_serving_universe()
    service = universe.service()
    service["spec"]["rayClusterDeletionDelaySeconds"] = 60
    service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["scaleStrategy"] = {}
    service["metadata"]["finalizers"] = ["ray.io/rayservice-finalizer"]
    assert universe.decision().actions == ()


def test_a_placement_stays_whatever_nodes_do() -> None:
    universe = a_serving_universe(serving={"parallelism": None})
    before = Memo.of(universe.service())
    universe.nodes = (a_node("gpu-b", 4), a_node("gpu-c", 16))
    universe.settle()
    universe.nodes = ()
    universe.settle()
    assert universe.done == []
    assert Memo.of(universe.service()) == before
    assert universe.reason("Placed") == "Placed"


def test_other_wishes_are_another_placement() -> None:
    universe = a_serving_universe()
    universe.change(placement={"accelerator": {"product": "Nobody-has-this"}})
    universe.settle()
    assert universe.reason() == "NoMatchingNodes"
    assert universe.condition("Serving")["status"] == "True"


def test_suspend_stops_everything_but_the_policies_and_is_no_stall() -> None:
    universe = a_serving_universe()
    universe.change(suspend=True)
    universe.settle()
    assert universe.service()["spec"]["suspend"] is True
    assert universe.reason() == "Suspended"
    assert universe.condition("Reconciling")["status"] == "True"
    universe.stop_cluster()
    universe.settle()
    assert universe.reason() == "Suspended"
    assert not universe.condition("Reconciling")
    assert not universe.condition("Stalled")
    assert universe.of("NetworkPolicy")
    universe.change(suspend=False)
    universe.settle()
    assert "suspend" not in universe.service()["spec"]


def test_a_model_that_is_suspended_from_the_start_is_mirrored_and_not_served() -> None:
    universe = Universe(body=a_body(suspend=True))
    universe.mirrored()
    universe.settle()
    assert not universe.of("RayService")
    assert universe.reason() == "Suspended"
    assert universe.condition("Mirrored")["status"] == "True"


def test_suspend_works_while_the_new_revision_is_still_missing() -> None:
    universe = a_serving_universe()
    universe.change(source=a_next_source(), suspend=True)
    universe.found = Universe().found
    universe.settle()
    assert universe.service()["spec"]["suspend"] is True


def test_a_registry_that_is_down_changes_nothing_that_serves() -> None:
    universe = a_serving_universe()
    universe.found = Unreadable("RegistryUnavailable", "It did not answer.")
    decision = universe.step()
    assert decision.actions == ()
    assert decision.unsettled
    assert universe.reason() == "AllChecksPassed"
    assert "did not answer" in universe.condition("Mirrored")["message"]


@pytest.mark.parametrize(
    ("state", "reason"), [(KubeRay.MISSING, "KubeRayMissing"), (KubeRay.TOO_OLD, "KubeRayTooOld")]
)
def test_without_a_usable_kuberay_everything_else_is_done_and_it_is_asked_again(
    state: KubeRay, reason: str
) -> None:
    universe = Universe(kuberay=state)
    universe.mirrored()
    decision = universe.settle()
    assert universe.reason() == universe.reason("Stalled") == reason
    assert universe.of("NetworkPolicy")
    assert not universe.of("RayService")
    assert decision.again is not None
    assert decision.again > 0


def test_seal_required_serves_nothing_that_was_not_probed() -> None:
    universe = Universe(config=a_config(seal="Required"))
    universe.mirrored()
    universe.settle()
    assert not universe.of("RayService")
    assert universe.reason() == universe.reason("Stalled") == "NotProbed"


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"serving": {"image": "registry.example/serving:latest"}}, "ImageNotPinned"),
        ({"delivery": {"mode": "nodeCache"}}, "DeliveryModeUnavailable"),
        (
            {"serving": {"adapters": [{"name": "a", "reference": "models/a@" + DIGEST}]}},
            "AdaptersUnavailable",
        ),
        ({"verification": {"keysSecretRef": {"name": "keys"}}}, "KeysUnusable"),
        ({"serving": {"engineArgs": {"dtype": "[a"}}}, "SpecInvalid"),
    ],
)
def test_what_this_version_does_not_serve_stalls_before_any_pod(spec: dict[str, object], reason: str) -> None:
    universe = Universe(body=a_body(**spec))
    universe.mirrored()
    universe.settle()
    assert universe.reason() == universe.reason("Stalled") == reason
    assert not universe.of("RayService")


def test_a_defect_of_a_change_leaves_what_serves_alone() -> None:
    universe = a_serving_universe()
    universe.change(serving={**universe.body["spec"]["serving"], "image": "registry.example/serving:latest"})
    universe.settle()
    assert universe.reason() == "ImageNotPinned"
    assert universe.condition("Serving")["status"] == "True"
    assert universe.done == []


@pytest.mark.parametrize(
    ("live", "rendered", "path"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, ""),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, ".a.b"),
        ({"a": [1]}, {"a": [1, 2]}, ".a"),
        ({"a": [{"b": 1}]}, {"a": [{"b": 2}]}, ".a[0].b"),
        ({}, {"a": {"b": 1}}, ".a"),
    ],
)
def test_the_first_difference_is_named_by_its_path(live: object, rendered: object, path: str) -> None:
    assert first_difference(live, rendered) == path
