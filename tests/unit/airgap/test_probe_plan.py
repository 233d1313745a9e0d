# SPDX-License-Identifier: Apache-2.0
"""The plan and the result of a probe: what is written is read again, and nothing else is taken."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_airgap.probe.plan import (
    CANARY_PATHS,
    MOST_TARGETS,
    PEER_PATHS,
    PLAN_BYTES,
    InvalidPlan,
    ProbePlan,
    Protocol,
    Target,
    parse_plan,
)
from sovereign_airgap.probe.result import (
    RESULT_BYTES,
    InvalidResult,
    Outcome,
    ProbeResult,
    parse_result,
)

TARGETS = (
    Target("outside-tcp-443", Protocol.TCP, "192.0.2.10", 443),
    Target("own-node", Protocol.TCP, "node", 10250),
    Target("outside6-udp-53", Protocol.UDP, "2001:db8:0:1::10", 53),
    Target("outside-icmp", Protocol.ICMP, "192.0.2.10"),
    Target("outside-dns-name", Protocol.RESOLVE, query="probe.example"),
    Target("outside-dns", Protocol.DNS, "192.0.2.10", 53, "probe.example"),
)


def a_plan(**changes: object) -> ProbePlan:
    values: dict[str, object] = {
        "run": "r-1", "timeout_seconds": 2.0, "settle_seconds": 10.0, "targets": TARGETS,
        "canary": "sovereign-canary.sovereign-system.svc.cluster.local", "peer": "10.244.0.7", **changes,
    }  # fmt: skip
    return ProbePlan(**values)  # type: ignore[arg-type]


def a_result(**changes: object) -> ProbeResult:
    values: dict[str, object] = {
        "run": "r-1", "at": datetime(2026, 1, 31, 12, tzinfo=UTC), "seconds": 3.1, "node": "node-1",
        "settled": 0.4, "paths": {"canary-tcp": Outcome.DENIED, "peer-tcp": Outcome.REACHED}, **changes,
    }  # fmt: skip
    return ProbeResult(**values)  # type: ignore[arg-type]


def test_a_plan_is_read_as_it_was_written() -> None:
    for plan in (a_plan(), a_plan(canary=None, peer=None, targets=()), a_plan(timeout_seconds=0.5)):
        assert parse_plan(plan.render()) == plan
        assert parse_plan(plan.render().encode()) == plan


def test_the_plan_of_the_contract_is_read() -> None:
    plan = parse_plan(
        '{"format":1,"run":"abc","timeoutSeconds":2,"settleSeconds":10,"canary":"c.ns.svc","peer":null,'
        '"targets":[{"name":"a","protocol":"TCP","address":"192.0.2.10","port":443,"query":null}]}'
    )
    assert plan.targets == (Target("a", Protocol.TCP, "192.0.2.10", 443),)
    assert plan.peer is None and plan.bound == 26


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"run": ""}, "run"),
        ({"run": "a b"}, "run"),
        ({"timeout_seconds": 0}, "timeoutSeconds"),
        ({"timeout_seconds": 6}, "timeoutSeconds"),
        ({"timeout_seconds": float("nan")}, "timeoutSeconds"),
        ({"settle_seconds": -1}, "settleSeconds"),
        ({"settle_seconds": 121}, "settleSeconds"),
        ({"canary": "a..b"}, "canary"),
        ({"canary": "192.0.2.300"}, "canary"),
        ({"canary": "node name"}, "canary"),
        ({"peer": "fe80::1%eth0"}, "peer"),
        ({"peer": "0.0.0.0"}, "one machine"),
        ({"peer": "224.0.0.1"}, "one machine"),
        ({"targets": TARGETS[:1] * 2}, "twice"),
        ({"targets": tuple(Target(f"t{n}", Protocol.ICMP, "::1") for n in range(MOST_TARGETS + 1))}, "48"),
    ],
)
def test_a_plan_outside_its_bounds_does_not_exist(change: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidPlan, match=says):
        a_plan(**change)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (("Upper", Protocol.ICMP, "::1"), "a-z"),
        (("x" * 41, Protocol.ICMP, "::1"), "at most 40"),
        (("peer-udp", Protocol.ICMP, "::1"), "every run"),
        (("a", Protocol.TCP, "192.0.2.10"), "address, port, found address"),
        (("a", Protocol.TCP, "192.0.2.10", 0), "1-65535"),
        (("a", Protocol.TCP, "192.0.2.10", 65536), "1-65535"),
        (("a", Protocol.ICMP, "192.0.2.10", 443), "found address, port"),
        (("a", Protocol.RESOLVE, "192.0.2.10", None, "probe.example"), "found address, query"),
        (("a", Protocol.RESOLVE), "found nothing"),
        (("a", Protocol.RESOLVE, None, None, "-.example"), "DNS name"),
        (("a", Protocol.RESOLVE, None, None, "a." * 120 + "example"), "DNS name"),
        (("a", Protocol.UDP, "", 53), "address"),
    ],
)
def test_a_target_has_what_its_protocol_needs_and_no_more(values: tuple[object, ...], says: str) -> None:
    with pytest.raises(InvalidPlan, match=says):
        Target(*values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"format": True},
        {"extra": 1},
        {"run": 1},
        {"timeoutSeconds": "2"},
        {"timeoutSeconds": True},
        {"timeoutSeconds": 10**400},
        {"targets": None},
        {"targets": [1]},
        {"targets": [{"name": "a", "protocol": "SCTP", "address": "::1", "port": 1}]},
        {"targets": [{"name": "a", "protocol": "TCP", "address": "::1", "port": 1.0}]},
        {"targets": [{"name": "a", "protocol": "TCP", "address": "::1", "port": 1, "host": "x"}]},
        {"targets": [{"protocol": "ICMP", "address": "::1"}]},
    ],
)
def test_a_document_that_is_not_quite_a_plan_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidPlan, match=r"^Expected "):
        parse_plan(json.dumps({**json.loads(a_plan().render()), **change}))


@pytest.mark.parametrize("text", ["", "[]", '{"run":"a","run":"b"}', "{" * 10000, "x" * (PLAN_BYTES + 1)])
def test_what_is_no_strict_json_is_neither_plan_nor_result(text: str) -> None:
    with pytest.raises(InvalidPlan, match=r"^Expected a plan"):
        parse_plan(text)
    with pytest.raises(InvalidResult, match=r"^Expected a probe result"):
        parse_result(text)


def test_a_plan_that_no_reader_takes_is_not_written() -> None:
    long = "a." * 90 + "example"
    targets = tuple(Target(f"t{n}", Protocol.DNS, long, 53, long) for n in range(MOST_TARGETS))
    with pytest.raises(InvalidPlan, match="at most 16384 bytes"):
        a_plan(targets=targets).render()


def test_a_result_is_read_as_it_was_written() -> None:
    for result in (a_result(), a_result(settled=None, node="", paths={})):
        assert parse_result(result.render()) == result
    assert a_result().named(Outcome.DENIED) == ("canary-tcp",)


def test_the_longest_result_fits_a_termination_message() -> None:
    names = [*CANARY_PATHS, *PEER_PATHS, *(f"{n:040}" for n in range(MOST_TARGETS))]
    result = a_result(run="r" * 64, node="n" * 253, seconds=1234.5, settled=1234.5,
                      paths=dict.fromkeys(names, Outcome.REACHED))  # fmt: skip
    assert len(result.render()) <= RESULT_BYTES
    assert parse_result(result.render()) == result


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"extra": 1},
        {"run": "a b"},
        {"at": "2026-13-01T00:00:00Z"},
        {"at": "2026-01-01"},
        {"at": 5},
        {"seconds": -1},
        {"seconds": 1e9},
        {"seconds": "1"},
        {"settled": False},
        {"node": "Node\n"},
        {"paths": []},
        {"paths": {"canary-tcp": "open"}},
        {"paths": {"canary-tcp": None}},
        {"paths": {"Ä": "denied"}},
        {"paths": {f"t{n}": "denied" for n in range(60)}},
    ],
)
def test_a_document_that_is_not_quite_a_result_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidResult, match=r"^Expected "):
        parse_result(json.dumps({**json.loads(a_result().render()), **change}))


def test_the_result_file_of_a_failed_run_is_not_a_result() -> None:
    with pytest.raises(InvalidResult, match="format 1"):
        parse_result('{"reason": "Usage", "message": "No such option"}')


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.sampled_from(sorted({*json.loads(a_plan().render()), *json.loads(a_result().render())}))


@given(st.dictionaries(FIELDS, json_values, max_size=3))
def test_no_document_does_more_than_be_refused(change: dict[str, object]) -> None:
    for parse, valid in ((parse_plan, a_plan().render()), (parse_result, a_result().render())):
        try:
            parse(json.dumps({**json.loads(valid), **change}))
        except (InvalidPlan, InvalidResult) as error:
            assert str(error).startswith("Expected ") and len(str(error)) < 400
