# SPDX-License-Identifier: Apache-2.0
"""Policies that others write: which of them could open the seal, and what follows when one comes or goes."""

from __future__ import annotations

from typing import Any

import kopf
import pytest

from sovereign_operator import handlers
from sovereign_operator.foreign_policies import could_open, could_select, opened_by
from sovereign_operator.indices import Indices, policy_key
from sovereign_operator.values import Manifest
from sovereign_operator.world import Delete, name_of
from tests.unit.operator.probed_worlds import ProbedUniverse, a_proven_universe

MODEL = "sovereign.dev/model"
COMPONENT = "sovereign.dev/component"
KEY = ("models", "mixtral")
LEAK = {"outside-tcp-443": "reached"}


def a_policy(name: str = "debug", labels: dict[str, str] | None = None, **spec: Any) -> Manifest:
    wanted = {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]} | spec
    metadata = {"name": name, "namespace": "models", "uid": name, "resourceVersion": "1"}
    return {
        "kind": "NetworkPolicy",
        "metadata": metadata | ({"labels": labels} if labels else {}),
        "spec": wanted,
    }


def expressed(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


@pytest.mark.parametrize(
    ("selector", "could"),
    [
        ({}, True),
        ({"matchLabels": {MODEL: "mixtral"}}, True),
        ({"matchLabels": {MODEL: "other"}}, False),
        ({"matchLabels": {COMPONENT: "worker"}}, True),
        ({"matchLabels": {COMPONENT: "mirror"}}, False),
        ({"matchLabels": {"ray.io/node-type": "worker"}}, True),  # KubeRay's labels are not ours to know
        ({"matchLabels": {"app": "web", MODEL: "other"}}, False),
        (expressed(MODEL, "In", "mixtral", "other"), True),
        (expressed(MODEL, "In", "other"), False),
        (expressed(MODEL, "NotIn", "mixtral"), False),
        (expressed(MODEL, "NotIn", "other"), True),
        (expressed(MODEL, "Exists"), True),
        (expressed(MODEL, "DoesNotExist"), False),
        (expressed(COMPONENT, "NotIn", "head", "peer", "prober"), True),
        (expressed(COMPONENT, "NotIn", "head", "peer", "prober", "worker"), False),
        (expressed("app", "DoesNotExist"), True),
        (expressed(MODEL, "Unheard"), True),
    ],
)
def test_a_selector_is_harmless_only_where_it_contradicts_what_every_sealed_pod_carries(
    selector: dict[str, Any], could: bool
) -> None:
    assert could_select(selector, "mixtral") is could


def test_only_rules_for_egress_open_a_way_out() -> None:
    assert could_open(a_policy(), "mixtral")
    assert not could_open(a_policy(egress=[]), "mixtral")
    assert not could_open(a_policy(policyTypes=["Ingress"], egress=None, ingress=[{}]), "mixtral")


def test_the_answer_changes_with_what_a_policy_says_and_with_nothing_else() -> None:
    before = opened_by([a_policy("b"), a_policy("a")], "mixtral")
    assert [line.partition(" ")[0] for line in before] == ["a", "b"]
    assert before == opened_by([a_policy("a", {"team": "x"}), a_policy("b")], "mixtral")
    other = {"ports": [{"port": 443}]}
    assert before != opened_by([a_policy("a", egress=[other]), a_policy("b")], "mixtral")


# -- whose a policy is ------------------------------------------------------------------------------------


OWNER = "sovereign.dev/owner"


@pytest.mark.parametrize(
    ("labels", "key"),
    [
        ({}, ("models", "")),
        ({OWNER: "mixtral"}, KEY),
        ({OWNER: "mixtral", "sovereign.dev/owner-namespace": "elsewhere"}, KEY),
        ({OWNER: "mixtral", COMPONENT: "mirror"}, ("models", "")),
        ({MODEL: "mixtral"}, ("models", "")),
    ],
)
def test_a_policy_is_ours_by_its_own_namespace_and_by_the_owner_label_alone(
    labels: dict[str, str], key: tuple[str, str]
) -> None:
    assert policy_key(a_policy(labels=labels)) == key


def test_what_is_not_the_models_own_counts_whatever_it_is_labelled_as() -> None:
    ours, theirs = a_policy("ours", {OWNER: "mixtral"}), a_policy("theirs")
    neighbours = a_policy("neighbours", {OWNER: "other"}, podSelector={"matchLabels": {MODEL: "other"}})
    false_friend = a_policy("false", {OWNER: "nobody"})
    indices = Indices()
    indices.policies = {policy_key(each): [each] for each in (ours, theirs, neighbours, false_friend)}
    found = [line.partition(" ")[0] for line in indices.opened_by_others(KEY)]
    assert found == ["false", "theirs"]
    assert indices.opened_by_others(("elsewhere", "mixtral")) == ()


def test_a_fingerprint_knows_what_could_open_the_seal_and_nothing_else_of_others() -> None:
    def fingerprint(*policies: Manifest) -> str:
        return Indices(policies={("models", ""): list(policies)}).fingerprint(KEY, "l")

    harmless = a_policy("web", podSelector={"matchLabels": {MODEL: "other"}})
    assert fingerprint() == fingerprint(harmless)
    assert fingerprint() != fingerprint(a_policy())
    newer = a_policy()
    newer["metadata"]["resourceVersion"] = "2"
    assert fingerprint(newer) == fingerprint(a_policy())


def test_a_policy_concerns_every_model_of_its_namespace_and_the_one_that_it_seals() -> None:
    models: list[tuple[str, str]] = [KEY, ("models", "other"), ("elsewhere", "mixtral")]
    indices = Indices(models={key: [] for key in models})
    assert indices.concerned(a_policy()) == {KEY, ("models", "other")}
    gone = a_policy(labels={OWNER: "gone"})
    assert indices.concerned(gone) == {KEY, ("models", "other"), ("models", "gone")}
    assert Indices().concerned(a_policy()) == set()


def test_every_policy_where_models_are_is_watched() -> None:
    settings = kopf.OperatorSettings()
    handlers.settings_for(settings)
    assert handlers.POLICIES not in settings.watching.label_selectors


# -- what follows -----------------------------------------------------------------------------------------


def in_flight(universe: ProbedUniverse) -> set[str]:
    return {name_of(job) for job in universe.jobs_in_flight()}


def test_a_policy_that_somebody_writes_is_probed_at_once_and_what_serves_stays_ready() -> None:
    universe = a_proven_universe()
    universe.foreign.append(a_policy())
    universe.settle()
    assert len(in_flight(universe)) == 2
    assert universe.sealed() == ("True", "Sealed")
    assert universe.reason() == "AllChecksPassed"
    universe.end_jobs()
    universe.settle()
    assert universe.sealed() == ("True", "Sealed")
    assert not in_flight(universe), "the proof is about that policy too"


def test_nothing_new_is_served_before_the_seal_is_proven_with_that_policy() -> None:
    universe = ProbedUniverse()
    universe.probe()
    universe.foreign.append(a_policy())
    universe.mirrored()
    universe.settle()
    assert universe.sealed() == ("True", "Sealed")
    assert not universe.of("RayService")
    universe.peer_answers()
    universe.settle()
    universe.end_jobs()
    universe.settle()
    assert universe.of("RayService")


def test_a_leak_names_the_policies_that_may_be_why_and_taking_them_away_is_probed_at_once() -> None:
    universe = a_proven_universe()
    universe.foreign.append(a_policy())
    universe.settle()
    universe.end_jobs(LEAK)
    universe.step()
    assert universe.sealed() == ("False", "LeakDetected")
    assert "debug" in universe.condition("EgressSealed")["message"]
    universe.settle()  # the confirming run is under way
    before = in_flight(universe)
    universe.foreign.clear()
    universe.settle()
    assert in_flight(universe) and not in_flight(universe) & before
    assert {name_of(job.manifest) for job in universe.actions_of(Delete)} >= before  # type: ignore[union-attr]
    universe.end_jobs()
    universe.settle()
    assert universe.sealed() == ("True", "Sealed")
    assert universe.reason() == "AllChecksPassed"


def test_a_leak_through_a_foreign_policy_is_confirmed_and_isolated() -> None:
    universe = a_proven_universe()
    universe.foreign.append(a_policy())
    for _ in range(2):
        universe.settle()
        universe.end_jobs(LEAK)
        universe.step()
    universe.settle()
    assert universe.egress["isolated"]
    assert universe.service()["spec"]["suspend"]
