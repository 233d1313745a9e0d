# SPDX-License-Identifier: Apache-2.0
"""The one way out of the cluster: opened for the pods of one mirror Job, closed with it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sovereign_operator.api import LABEL_COMPONENT
from sovereign_operator.carry_out import Executor
from sovereign_operator.desired.mirror_exception import mirror_exception
from sovereign_operator.desired.mirror_job import mirror_job
from sovereign_operator.desired.rendered import defects
from sovereign_operator.values import Manifest
from sovereign_operator.world import Apply, Create, Delete, annotation, name_of
from tests.unit.operator.builders import a_config, a_model
from tests.unit.operator.test_reconcile import MemoryCluster, Ray
from tests.unit.operator.worlds import PROBE, Universe

EVERYWHERE = ["0.0.0.0/0", "::/0"]
SOURCES = {"allowed": True, "endpoint": "http://hub.lab:8000", "cidrs": EVERYWHERE}


def a_live_job(uid: str = "job-uid") -> Manifest:
    job = mirror_job(a_model(), a_config())
    job["metadata"]["uid"] = uid
    return job


def rendered(uid: str = "job-uid", **sources: Any) -> Manifest:
    config = a_config(externalSources=SOURCES | sources)
    return mirror_exception(a_live_job(uid), config.external_sources)


def a_mirroring_universe(**sources: Any) -> Universe:
    universe = Universe(config=a_config(externalSources=SOURCES | sources))
    universe.settle()
    return universe


def job_of(universe: Universe) -> Manifest:
    return universe.of("Job", but=PROBE)[0]


def exceptions(universe: Universe) -> tuple[Manifest, ...]:
    return universe.of("NetworkPolicy", only=("mirror",))


def said(universe: Universe) -> str:
    return str(universe.body["status"]["egress"]["mirrorException"])


# -- what it says -----------------------------------------------------------------------------------------


def test_it_lets_the_pods_of_one_job_reach_the_hubs_ports_and_nothing_else() -> None:
    policy, job = rendered(), a_live_job()
    assert (name_of(policy), policy["metadata"]["namespace"]) == (name_of(job), job["metadata"]["namespace"])
    selector = {LABEL_COMPONENT: "mirror", "batch.kubernetes.io/controller-uid": "job-uid"}
    assert policy["spec"]["podSelector"] == {"matchLabels": selector}
    assert policy["spec"]["policyTypes"] == ["Egress"]
    [rule] = policy["spec"]["egress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 443}, {"protocol": "TCP", "port": 8000}]
    assert [peer["ipBlock"]["cidr"] for peer in rule["to"]] == EVERYWHERE
    assert not defects(policy)


def test_the_job_owns_it_so_that_it_goes_with_the_job() -> None:
    job = a_live_job()
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name_of(job), "uid": "job-uid"}
    assert rendered()["metadata"]["ownerReferences"] == [owner]
    assert "finalizers" not in rendered()["metadata"]
    assert annotation(rendered("other"), "sovereign.dev/rendered") != annotation(
        rendered(), "sovereign.dev/rendered"
    )


@pytest.mark.parametrize(
    ("cidr", "left_out"),
    [
        ("0.0.0.0/0", ["169.254.0.0/16"]),
        ("128.0.0.0/1", ["169.254.0.0/16"]),
        ("10.0.0.0/8", None),
        ("169.254.0.0/16", None),  # asked for by that name, and a range cannot leave itself out
        ("::/0", ["fd00:ec2::254/128", "fe80::/10"]),
        ("fd00::/8", ["fd00:ec2::254/128"]),
        ("2001:db8::/32", None),
    ],
)
def test_the_metadata_addresses_are_left_out_of_every_range_around_them(
    cidr: str, left_out: list[str] | None
) -> None:
    [peer] = rendered(cidrs=[cidr])["spec"]["egress"][0]["to"]
    assert peer["ipBlock"].get("except") == left_out


def test_ranges_are_spelt_as_the_api_server_does_and_nonsense_is_an_error_at_start() -> None:
    sources = a_config(externalSources={"cidrs": ["10.1.2.3/8", "2001:DB8::/32", "10.0.0.0/8"]})
    assert sources.external_sources.cidrs == ("10.0.0.0/8", "2001:db8::/32")
    with pytest.raises(ValidationError, match="cidrs"):
        a_config(externalSources={"cidrs": ["hub.example"]})


# -- when it is there -------------------------------------------------------------------------------------


def test_it_comes_after_its_job_and_status_says_so() -> None:
    universe = a_mirroring_universe()
    writes = [a.manifest["kind"] for a in universe.actions_of(Create, Apply)]  # type: ignore[union-attr]
    assert writes.index("Job") < len(writes) - 1 - writes[::-1].index("NetworkPolicy")
    [policy] = exceptions(universe)
    assert name_of(policy) == name_of(job_of(universe))
    assert name_of(policy) in said(universe)
    universe.done.clear()
    universe.settle()
    assert universe.done == [], "and then nothing more is done"


@pytest.mark.parametrize("ended", ["Failed", "Complete"])
def test_it_is_closed_as_soon_as_the_job_has_ended(ended: str) -> None:
    universe = a_mirroring_universe()
    universe.end_job("", ended)
    universe.step()
    assert exceptions(universe) == ()
    assert said(universe) == ""
    assert universe.of("Job", but=PROBE), "what is left of the Job can still be read"


def test_an_artifact_that_is_there_before_its_job_has_ended_closes_nothing_yet() -> None:
    universe = a_mirroring_universe()
    universe.mirrored()
    universe.settle()
    assert exceptions(universe)
    universe.end_job("", "Complete")
    universe.step()
    assert exceptions(universe) == ()


def test_a_second_try_gets_an_exception_of_its_own() -> None:
    universe = a_mirroring_universe()
    universe.end_job('{"reason": "SourceUnavailable", "message": "503"}')
    universe.settle()
    universe.later(3600)
    universe.step()  # clears the failed one away
    universe.settle()
    [policy] = exceptions(universe)
    assert policy["metadata"]["ownerReferences"][0]["uid"] == job_of(universe)["metadata"]["uid"]


def test_a_job_that_nobody_wants_any_more_loses_its_way_out_at_once() -> None:
    universe = a_mirroring_universe()
    old = name_of(job_of(universe))
    source = {"huggingFace": {"repo": "mistralai/Mixtral-8x7B-Instruct-v0.1", "revision": "0" * 40}}
    universe.change(source=source)
    universe.step()
    assert old not in {name_of(policy) for policy in exceptions(universe)}
    universe.settle()
    assert [name_of(policy) for policy in exceptions(universe)] == [name_of(job_of(universe))]


def test_a_deleted_model_leaves_no_way_out() -> None:
    universe = a_mirroring_universe()
    universe.ask_to_delete()
    universe.step()
    assert exceptions(universe) == ()


def test_forbidding_external_sources_closes_what_is_open() -> None:
    universe = a_mirroring_universe()
    universe.config = a_config(externalSources=SOURCES | {"allowed": False})
    universe.step()
    assert exceptions(universe) == ()
    assert said(universe) == ""


def test_what_somebody_adds_to_it_is_taken_out_again() -> None:
    universe = a_mirroring_universe()
    [policy] = exceptions(universe)
    policy["spec"]["egress"].append({})
    universe.done.clear()
    universe.step()
    [repair] = universe.actions_of(Apply)
    assert isinstance(repair, Apply)
    assert repair.restores and repair.drifted_at
    assert len(exceptions(universe)[0]["spec"]["egress"]) == 1


def test_without_ranges_the_operator_opens_nothing_and_still_says_what_runs() -> None:
    universe = a_mirroring_universe(cidrs=[])
    assert exceptions(universe) == ()
    assert name_of(job_of(universe)) in said(universe)
    assert not universe.actions_of(Delete)


async def test_a_fight_over_it_is_given_up_without_a_right_to_read_it() -> None:
    cluster = MemoryCluster()
    executor = Executor(cluster, Ray(), "sovereign-system")  # type: ignore[arg-type]
    repair = Apply(rendered(), restores=True, drifted_at="spec.egress")
    world = Universe().world()
    for _ in range(3):
        assert not (await executor.carry_out(world, (repair,))).outcome.contested
    cluster.requests.clear()
    done = await executor.carry_out(world, (repair,))
    assert "spec.egress" in done.outcome.contested
    assert cluster.requests == []
