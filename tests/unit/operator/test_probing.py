# SPDX-License-Identifier: Apache-2.0
"""When a seal is probed, what is known after that, and what is not served before."""

from __future__ import annotations

from typing import Any

import pytest

from sovereign_operator.world import Apply, Create, Delete, name_of
from tests.unit.operator.builders import a_node, a_sealing_config
from tests.unit.operator.probed_worlds import ProbedUniverse, a_proven_universe, plan_of
from tests.unit.operator.worlds import START, a_body

INTERVAL = 21600.0
LEAK = {"outside-tcp-443": "reached"}


def kinds(universe: ProbedUniverse) -> list[str]:
    return [f"{type(a).__name__} {a.manifest['kind']}" for a in universe.actions_of(Apply, Create, Delete)]  # type: ignore[union-attr]


# -- before the first pod ---------------------------------------------------------------------------------


def test_policies_then_the_peer_then_both_jobs_then_the_ray_service() -> None:
    universe = ProbedUniverse()
    universe.mirrored()
    universe.settle()
    assert set(kinds(universe)) == {"Apply NetworkPolicy", "Apply Service", "Create Pod"}
    assert universe.sealed() == ("Unknown", "Probing")
    assert "waits for its peer" in universe.condition("EgressSealed")["message"]
    universe.peer_answers()
    universe.settle()
    assert kinds(universe)[-2:] == ["Create Job", "Create Job"]
    assert not universe.of("RayService")
    assert universe.reason() == "Probing"
    universe.end_jobs()
    universe.settle()
    assert universe.sealed() == ("True", "Sealed")
    assert kinds(universe)[-1] == "Apply RayService"


def test_only_report_serves_before_the_probe_has_ended() -> None:
    universe = ProbedUniverse(config=a_sealing_config(seal="Report"))
    universe.mirrored()
    universe.settle()
    assert universe.of("RayService")
    universe.start_cluster()
    universe.probe(prober=LEAK)
    universe.settle()
    assert universe.sealed() == ("False", "LeakDetected")
    assert universe.reason() == "AllChecksPassed"


def test_without_a_canary_nothing_is_probed_and_nothing_served() -> None:
    universe = ProbedUniverse(config=a_sealing_config(probe={}))
    universe.mirrored()
    universe.settle()
    assert universe.sealed() == ("Unknown", "NotProbed")
    assert universe.reason() == universe.reason("Stalled") == "NotProbed"
    assert not universe.of("Pod") and not universe.of("Job") and not universe.of("Service")


def test_the_proof_is_ready_before_the_weights_are() -> None:
    universe = ProbedUniverse()
    universe.probe()
    assert universe.sealed() == ("True", "Sealed")
    assert universe.reason() == "MirrorPending"


def test_what_was_proven_is_in_status_and_outlives_its_jobs() -> None:
    universe = a_proven_universe()
    egress = universe.egress
    assert (egress["verdict"], egress["node"], egress["settledSeconds"]) == ("Sealed", "gpu-a", "0.4")
    assert (egress["denied"], egress["inARow"], egress["findings"]) == (6, 1, ["own-node"])
    assert egress["lastProbe"] == "2026-01-31T12:00:00Z"
    universe.children = {key: one for key, one in universe.children.items() if key[0] != "Job"}
    decision = universe.step()
    assert (decision.actions, decision.again) == ((), None)
    assert universe.reason() == "AllChecksPassed"


# -- when it is due ---------------------------------------------------------------------------------------


def test_nothing_is_due_before_the_interval_has_passed() -> None:
    universe = a_proven_universe()
    universe.later(INTERVAL - 10)
    decision = universe.step()
    assert decision.actions == ()
    assert decision.rest == 10
    universe.later(10)
    assert kinds_of_next(universe) == ["Job", "Job"]


def kinds_of_next(universe: ProbedUniverse) -> list[str]:
    return [str(a.manifest["kind"]) for a in universe.decision().actions if isinstance(a, Create)]


def test_a_model_stays_ready_while_an_old_proof_is_renewed() -> None:
    universe = a_proven_universe()
    universe.later(INTERVAL)
    universe.settle()
    assert universe.reason() == "AllChecksPassed"
    universe.end_jobs()
    universe.settle()
    assert universe.egress["inARow"] == 2
    assert universe.reason() == "AllChecksPassed"


@pytest.mark.parametrize(
    "change",
    [
        lambda u: u.change(network={"clients": [{"namespace": "chat"}]}),
        lambda u: setattr(u, "config", a_sealing_config(images={"airgap": "other@sha256:" + "3" * 64})),
        lambda u: setattr(u, "config", a_sealing_config([])),
        lambda u: u.change(placement={"tolerations": [{"key": "x", "operator": "Exists"}]}),
    ],
)
def test_other_policies_targets_or_images_are_proven_anew(change: Any) -> None:
    universe = a_proven_universe()
    before = universe.egress["probeHash"]
    change(universe)
    universe.settle()
    assert universe.sealed() == ("Unknown", "Probing")
    assert universe.reason() == "Probing"
    universe.peer_answers()
    universe.settle()
    universe.end_jobs()
    universe.settle()
    assert universe.sealed() == ("True", "Sealed")
    assert universe.egress["probeHash"] != before


def test_a_new_node_is_probed_while_the_model_stays_ready() -> None:
    universe = a_proven_universe()
    universe.nodes = (a_node(), a_node("gpu-b"))
    universe.settle()
    assert len(universe.jobs_in_flight()) == 2
    assert universe.reason() == "AllChecksPassed"
    universe.end_jobs()
    universe.settle()
    assert not universe.jobs_in_flight()


@pytest.mark.parametrize("node", [a_node(ready=False), a_node(schedulable=False), a_node(product="other")])
def test_what_a_node_does_in_between_is_no_reason_to_probe(node: Any) -> None:
    universe = a_proven_universe()
    universe.nodes = (node,)
    assert universe.decision().actions == ()


def test_a_policy_that_was_missing_voids_the_proof() -> None:
    universe = a_proven_universe()
    del universe.children["NetworkPolicy", name_of(universe.of("NetworkPolicy")[0])]
    universe.step()
    assert universe.sealed() == ("False", "PolicyMissing")
    assert universe.egress["probeHash"] == ""
    universe.settle()
    assert universe.sealed() == ("Unknown", "Probing")
    universe.end_jobs()
    universe.settle()
    assert universe.reason() == "AllChecksPassed"


def test_what_was_tried_while_a_policy_was_missing_is_thrown_away() -> None:
    universe = ProbedUniverse()
    universe.settle()
    universe.peer_answers()
    universe.settle()
    universe.end_jobs()
    del universe.children["NetworkPolicy", name_of(universe.of("NetworkPolicy")[0])]
    universe.step()
    assert not universe.of("Job", only=("prober", "control"))


def test_a_proof_that_nobody_renewed_is_stale_and_resumes_nothing() -> None:
    universe = a_proven_universe()
    universe.later(2 * INTERVAL + 1)
    universe.settle()
    assert universe.sealed() == ("Unknown", "Stale")
    assert universe.reason() == "Stale"
    assert universe.service()["spec"].get("suspend") is None, "what serves is left alone"
    universe.end_jobs()
    universe.settle()
    assert universe.reason() == "AllChecksPassed"


def test_a_proof_from_the_future_is_stale() -> None:
    universe = a_proven_universe()
    universe.later(-3600)
    universe.settle()
    assert universe.sealed() == ("Unknown", "Stale")
    assert len(universe.jobs_in_flight()) == 2
    universe.end_jobs()
    universe.settle()
    assert universe.sealed() == ("True", "Sealed")


# -- what proved nothing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"prober": {"peer-tcp": "denied"}}, "did not reach its peer"),
        ({"control": {"canary-tcp": "denied"}}, "did not reach the canary"),
        ({"prober": {f"canary-{p}": "unable" for p in ("tcp", "udp", "dns")}}, "does the resolver answer?"),
        ({"prober": "not json"}, "The prober gave no result"),
        ({"control": '{"reason": "Usage", "message": "Expected a plan."}'}, "Usage: Expected a plan."),
        ({"control": '{"reason": "Nonsense"}'}, "control gave no result"),
    ],
)
def test_what_proved_nothing_serves_nothing_and_is_tried_again(answers: Any, words: str) -> None:
    universe = ProbedUniverse()
    universe.mirrored()
    universe.probe(**answers)
    assert universe.sealed() == ("Unknown", "ProbeInconclusive")
    assert words in universe.condition("EgressSealed")["message"]
    assert universe.reason() == universe.reason("Reconciling") == "ProbeInconclusive"
    assert not universe.of("RayService")
    assert universe.decision().rest == 30
    universe.later(30)
    universe.probe()
    universe.settle()
    assert universe.of("RayService")


def test_the_tries_come_further_and_further_apart() -> None:
    universe = ProbedUniverse()
    waits = []
    for _ in range(7):
        universe.probe(control="")
        waits.append(universe.decision().rest)
        universe.later(waits[-1] or 0)
    assert waits == [30, 60, 120, 240, 480, 600, 600]


def test_a_probe_without_an_end_says_what_its_pod_waits_for() -> None:
    universe = ProbedUniverse()
    universe.mirrored()
    universe.settle()
    universe.peer_answers()
    decision = universe.settle()
    assert decision.again == 120
    job = next(job for job in universe.jobs_in_flight() if "prober" in name_of(job))
    waiting = {"reason": "ImagePullBackOff", "message": "no such image"}
    universe.put_pod_of(job, {"containerStatuses": [{"state": {"waiting": waiting}}]})
    universe.later(121)
    universe.settle()
    assert universe.sealed() == ("Unknown", "ProbeInconclusive")
    assert "ImagePullBackOff: no such image" in universe.condition("EgressSealed")["message"]
    assert not universe.jobs_in_flight(), "what nobody waits for is ended"


def test_a_job_without_a_pod_points_to_what_may_forbid_it() -> None:
    universe = ProbedUniverse()
    universe.settle()
    universe.peer_answers()
    universe.settle()
    universe.later(121)
    universe.settle()
    assert "a quota or an admission policy" in universe.condition("EgressSealed")["message"]


def test_a_job_that_failed_without_a_word_is_told_in_kubernetes_words() -> None:
    universe = ProbedUniverse()
    universe.settle()
    universe.peer_answers()
    universe.settle()
    for job in universe.jobs_in_flight():
        failed = {
            "type": "Failed",
            "status": "True",
            "message": "Job was active longer than specified deadline",
        }
        job["status"] = {"conditions": [failed]}
    universe.settle()
    assert "longer than specified deadline" in universe.condition("EgressSealed")["message"]


def test_a_result_of_another_run_is_no_result() -> None:
    universe = ProbedUniverse()
    universe.settle()
    universe.peer_answers()
    universe.settle()
    run = plan_of(universe.jobs_in_flight()[0]).run
    universe.end_jobs()
    for pod in universe.of("Pod", only=("prober",)):
        ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
        ended["message"] = ended["message"].replace(run, "0" * 16)
    universe.settle()
    assert "reports another run" in universe.condition("EgressSealed")["message"]


def test_a_namespace_without_its_label_is_not_sealed_whatever_the_probe_says() -> None:
    universe = ProbedUniverse(config=a_sealing_config(admission=True), namespace_sealed=False)
    universe.mirrored()
    universe.probe()
    universe.settle()
    assert universe.sealed() == ("False", "NamespaceNotSealed")
    assert universe.reason() == universe.reason("Stalled") == "NamespaceNotSealed"
    assert not universe.of("RayService")
    assert universe.decision().again == 30
    universe.namespace_sealed = True
    universe.settle()
    assert universe.of("RayService")


def test_no_probe_runs_where_no_node_could_take_it() -> None:
    universe = ProbedUniverse(nodes=())
    universe.settle()
    universe.peer_answers()
    universe.settle()
    assert "waits for a node" in universe.condition("EgressSealed")["message"]
    assert not universe.jobs_in_flight()
    universe.nodes = (a_node(),)
    universe.settle()
    assert len(universe.jobs_in_flight()) == 2


def test_a_suspended_model_is_probed_once_it_is_resumed() -> None:
    universe = ProbedUniverse(body=a_body(suspend=True))
    universe.mirrored()
    universe.settle()
    assert universe.sealed() == ("Unknown", "NotProbed")
    assert universe.now == START
    universe.change(suspend=False)
    universe.probe()
    assert universe.sealed() == ("True", "Sealed")


def test_a_new_operator_finds_the_run_that_the_old_one_began() -> None:
    universe = ProbedUniverse()
    universe.settle()
    universe.peer_answers()
    universe.settle()
    jobs = {name_of(job) for job in universe.jobs_in_flight()}
    universe.end(universe.jobs_in_flight()[0], "nothing")
    assert universe.decision().actions == (), "the other one runs still"
    assert {name_of(job) for job in universe.of("Job", only=("prober", "control"))} == jobs


def test_a_run_for_what_is_not_wanted_any_more_is_ended() -> None:
    universe = ProbedUniverse()
    universe.settle()
    universe.peer_answers()
    universe.settle()
    old = {name_of(job) for job in universe.jobs_in_flight()}
    universe.change(network={"clients": [{"namespace": "chat"}]})
    universe.settle()
    assert old.isdisjoint({name_of(job) for job in universe.jobs_in_flight()})
