# SPDX-License-Identifier: Apache-2.0
"""From what a sealed and an unsealed pod found to one reason: which comes first, and what it says."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from sovereign_airgap.probe.plan import CANARY_PATHS, PEER_PATHS
from sovereign_airgap.probe.result import Outcome, ProbeResult
from sovereign_operator.verdict import LISTED, Question, Silence, judge

OUTSIDE = ("outside-tcp-443", "outside6-udp-53", "metadata")
TARGETS = ("api-server", *OUTSIDE, "outside-dns-name")
QUESTION = Question(TARGETS, names=frozenset({"outside-dns-name"}))
SILENCE = Silence("its pod waits: ErrImagePull.")


def a_result(node: str = "gpu-a", settled: float | None = 0.4, **paths: str) -> ProbeResult:
    named = {name.replace("_", "-"): Outcome(outcome) for name, outcome in paths.items()}
    return ProbeResult("r", datetime(2026, 1, 31, tzinfo=UTC), 3.0, node, settled, named)


def all_of(names: tuple[str, ...], outcome: str) -> dict[str, str]:
    return {name.replace("-", "_"): outcome for name in names}


def the_prober(**paths: str) -> ProbeResult:
    """Denied everywhere, with a peer that answers and its own node in reach."""
    usual = all_of(CANARY_PATHS, "denied") | all_of(PEER_PATHS, "reached") | all_of(TARGETS, "denied")
    return a_result(**usual | {"own_node": "reached"} | paths)


def the_control(**paths: str) -> ProbeResult:
    usual = all_of(CANARY_PATHS, "reached") | all_of(TARGETS, "reached") | {"own_node": "reached"}
    return a_result(**usual | paths)


def test_denied_inside_and_reached_outside_is_sealed() -> None:
    verdict = judge(the_prober(), the_control(), QUESTION)
    assert (verdict.reason, verdict.denied, verdict.unprovable) == ("Sealed", 8, ())
    assert verdict.findings == ("own-node",)
    assert "8 paths denied on gpu-a, 0 unprovable." in verdict.message
    assert "NodeReachable" in verdict.message
    assert (verdict.node, verdict.settled) == ("gpu-a", 0.4)


def test_an_own_node_that_is_out_of_reach_is_no_finding() -> None:
    verdict = judge(the_prober(own_node="denied"), the_control(), QUESTION)
    assert (verdict.reason, verdict.findings) == ("Sealed", ())
    assert "NodeReachable" not in verdict.message


@pytest.mark.parametrize("outcome", ["denied", "unable"])
def test_what_the_control_cannot_reach_either_is_unprovable_and_never_denied(outcome: str) -> None:
    control = the_control(**all_of(OUTSIDE, outcome))
    verdict = judge(the_prober(), control, QUESTION)
    assert (verdict.reason, verdict.denied, verdict.unprovable) == ("Sealed", 5, OUTSIDE)
    assert "3 unprovable: outside-tcp-443, outside6-udp-53, metadata." in verdict.message


def test_what_the_prober_cannot_try_is_unprovable() -> None:
    verdict = judge(the_prober(outside6_udp_53="unable"), the_control(), QUESTION)
    assert (verdict.reason, verdict.unprovable) == ("Sealed", ("outside6-udp-53",))


def test_a_site_without_any_outside_proves_what_the_canary_proves() -> None:
    control = the_control(**all_of(TARGETS, "denied"))
    verdict = judge(the_prober(), control, QUESTION)
    assert (verdict.reason, verdict.denied, verdict.unprovable) == ("Sealed", 3, TARGETS)


@pytest.mark.parametrize("path", CANARY_PATHS)
def test_an_answer_of_the_canary_means_that_policies_are_not_enforced(path: str) -> None:
    verdict = judge(the_prober(**all_of((path,), "reached")), the_control(), QUESTION)
    assert (verdict.reason, verdict.findings) == ("PolicyNotEnforced", (path,))
    assert path in verdict.message


@pytest.mark.parametrize("path", (*OUTSIDE, "api-server"))
def test_each_target_that_answers_is_a_leak_by_its_name(path: str) -> None:
    verdict = judge(the_prober(**all_of((path,), "reached")), the_control(), QUESTION)
    assert (verdict.reason, verdict.findings) == ("LeakDetected", (path,))
    assert path in verdict.message


def test_a_leak_is_one_whatever_the_control_or_the_peer_say() -> None:
    prober = the_prober(metadata="reached", peer_tcp="denied")
    assert judge(prober, SILENCE, QUESTION).reason == "LeakDetected"
    assert judge(prober, the_control(metadata="denied"), QUESTION).reason == "LeakDetected"


def test_a_resolver_that_forwards_has_a_reason_of_its_own_unless_more_leaks() -> None:
    alone = judge(the_prober(outside_dns_name="reached"), the_control(), QUESTION)
    assert (alone.reason, alone.findings) == ("DNSForwards", ("outside-dns-name",))
    both = judge(the_prober(outside_dns_name="reached", metadata="reached"), the_control(), QUESTION)
    assert (both.reason, both.findings) == ("LeakDetected", ("metadata", "outside-dns-name"))
    assert "metadata, outside-dns-name" in both.message


def test_not_enforced_comes_before_every_leak() -> None:
    verdict = judge(the_prober(canary_udp="reached", metadata="reached"), the_control(), QUESTION)
    assert verdict.reason == "PolicyNotEnforced"


@pytest.mark.parametrize(
    ("prober", "control", "words"),
    [
        (SILENCE, the_control(), "prober gave no result: its pod waits: ErrImagePull."),
        (the_prober(), SILENCE, "control gave no result: its pod waits: ErrImagePull."),
        (the_prober(peer_tcp="denied"), the_control(), "peer (peer-tcp)"),
        (the_prober(peer_udp="unable"), the_control(), "peer (peer-udp)"),
        (the_prober(), the_control(canary_tcp="denied", canary_udp="denied"), "(canary-tcp, canary-udp)"),
        (the_prober(), the_control(canary_dns="unable"), "control on gpu-a did not reach the canary"),
        (the_prober(**all_of(CANARY_PATHS, "unable")), the_control(), "does the resolver answer?"),
        (a_result(), the_control(), "did not reach its peer"),
    ],
)
def test_nothing_is_proven_without_both_pods_the_peer_and_the_canary(
    prober: Any, control: Any, words: str
) -> None:
    verdict = judge(prober, control, QUESTION)
    assert verdict.reason == "ProbeInconclusive"
    assert words in verdict.message


def test_the_api_server_of_the_own_node_is_a_finding_on_a_control_plane_only() -> None:
    prober = the_prober(api_server="reached")
    on_it = Question(TARGETS, QUESTION.names, control_planes={"gpu-a"})
    verdict = judge(prober, the_control(), on_it)
    assert (verdict.reason, verdict.findings) == ("Sealed", ("own-node", "api-server"))
    assert "api-server" not in verdict.unprovable
    elsewhere = Question(TARGETS, QUESTION.names, control_planes={"gpu-b"})
    assert judge(prober, the_control(), elsewhere).reason == "LeakDetected"
    assert judge(the_prober(api_server="reached", own_node="denied"), the_control(), on_it).reason == (
        "LeakDetected"
    )


def test_a_sentence_lists_a_bounded_number_of_paths() -> None:
    many = tuple(f"outside-{number}" for number in range(40))
    prober = the_prober(**all_of(many, "reached"))
    verdict = judge(prober, the_control(), Question(many))
    assert verdict.findings == many
    assert f"and {40 - LISTED} more" in verdict.message
    assert len(verdict.message) < 900


@pytest.mark.parametrize("path", ["canary_tcp", "outside_tcp_443"])
def test_a_breach_names_the_policies_of_others_that_may_be_why(path: str) -> None:
    question = replace(QUESTION, suspects=("debug",))
    assert "debug" in judge(the_prober(**{path: "reached"}), the_control(), question).message
    assert "others" not in judge(the_prober(**{path: "reached"}), the_control(), QUESTION).message
