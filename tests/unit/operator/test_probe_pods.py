# SPDX-License-Identifier: Apache-2.0
"""The pods of the probe: who is sealed and who is not, what they try, and on which nodes."""

from __future__ import annotations

from typing import Any

import pytest

from sovereign_airgap.probe.plan import CANARY_PATHS, ProbePlan, parse_plan
from sovereign_operator.api import (
    ANNOTATION_PROBE_RUN,
    COMPONENT_CONTROL,
    COMPONENT_PEER,
    COMPONENT_PROBER,
    LABEL_COMPONENT,
    LABEL_MODEL,
    LABEL_OWNER,
    LABEL_OWNER_NAMESPACE,
    SovereignModel,
)
from sovereign_operator.config import OperatorConfig
from sovereign_operator.desired.network_policy import sealed_set
from sovereign_operator.desired.probe import control_job, new_run, peer_pod, peer_service, prober_job, targets
from sovereign_operator.desired.rendered import defects
from sovereign_operator.values import Manifest
from tests.unit.operator.builders import AIRGAP_IMAGE, CANARY, PRODUCT, a_model, a_sealing_config

RUN = "0123456789abcdef"
PLACE: dict[str, Any] = {
    "accelerator": {"product": PRODUCT},
    "nodeSelector": {"zone": "a"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
}
RESOLVER = {"namespace": "sovereign-system", "clusterIp": "10.96.0.52"}


def a_placed_model() -> SovereignModel:
    return a_model(placement=PLACE)


def pod_of(manifest: Manifest) -> Manifest:
    return manifest["spec"]["template"] if manifest["kind"] == "Job" else manifest


def the_pods(config: OperatorConfig) -> dict[str, Manifest]:
    model = a_placed_model()
    made = (peer_pod(model, config), prober_job(model, config, RUN), control_job(model, config, RUN))
    return dict(zip(("peer", "prober", "control"), map(pod_of, made), strict=True))


def plan_of(job: Manifest) -> ProbePlan:
    arguments = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments[:3] == ["probe", "run", "--plan-json"]
    return parse_plan(arguments[3])


def test_prober_and_peer_are_in_the_sealed_set_and_the_control_never_is() -> None:
    pods = the_pods(a_sealing_config())
    selector = sealed_set(a_placed_model())
    for name, component in (("peer", COMPONENT_PEER), ("prober", COMPONENT_PROBER)):
        labels = pods[name]["metadata"]["labels"]
        assert selector["matchLabels"].items() <= labels.items()
        assert labels[LABEL_COMPONENT] == component in selector["matchExpressions"][0]["values"]
    labels = pods["control"]["metadata"]["labels"]
    assert LABEL_MODEL not in labels
    assert (labels[LABEL_COMPONENT], labels[LABEL_OWNER]) == (COMPONENT_CONTROL, "mixtral")
    assert labels[LABEL_OWNER_NAMESPACE] == "models"


def test_both_try_the_same_and_only_the_prober_waits_and_has_a_peer() -> None:
    config = a_sealing_config()
    prober = plan_of(prober_job(a_model(), config, RUN))
    control = plan_of(control_job(a_model(), config, RUN))
    assert prober.targets == control.targets == targets(config)
    names = [target.name for target in prober.targets]
    assert names == ["outside-tcp-443", "outside-dns-name", "api-server", "own-node"]
    assert (prober.run, prober.canary) == (control.run, control.canary) == (RUN, CANARY)
    assert (prober.peer, prober.settle_seconds) == ("mixtral-peer.models.svc.cluster.local", 10)
    assert (control.peer, control.settle_seconds) == (None, 0)


def test_both_jobs_of_a_run_say_so_and_end_by_themselves() -> None:
    for job in (
        prober_job(a_model(), a_sealing_config(), RUN),
        control_job(a_model(), a_sealing_config(), RUN),
    ):
        for metadata in (job["metadata"], job["spec"]["template"]["metadata"]):
            assert metadata["annotations"][ANNOTATION_PROBE_RUN] == RUN
        spec = job["spec"]
        assert (spec["backoffLimit"], spec["template"]["spec"]["restartPolicy"]) == (0, "Never")
        assert spec["activeDeadlineSeconds"] == 180
        assert spec["ttlSecondsAfterFinished"] == 600


def test_jobs_are_where_their_pods_belong_and_who_owns_them() -> None:
    config, model = a_sealing_config(), a_model("a" * 40)
    prober, control = prober_job(model, config, RUN), control_job(model, config, RUN)
    assert prober["metadata"]["namespace"] == "models"
    assert prober["metadata"]["ownerReferences"] == [model.owner_reference()]
    assert control["metadata"]["namespace"] == "sovereign-system"
    assert "ownerReferences" not in control["metadata"]
    assert all(len(job["metadata"]["name"]) <= 63 for job in (prober, control))


def test_prober_and_control_run_on_the_workers_nodes_and_the_peer_on_the_models() -> None:
    pods = the_pods(a_sealing_config())
    for name in ("prober", "control"):
        assert pods[name]["spec"]["nodeSelector"] == {"nvidia.com/gpu.product": PRODUCT, "zone": "a"}
    assert pods["peer"]["spec"]["nodeSelector"] == {"zone": "a"}
    for pod in pods.values():
        assert pod["spec"]["tolerations"] == PLACE["tolerations"]


def test_the_sealed_ones_ask_the_model_pods_resolver_and_the_control_the_clusters() -> None:
    pods = the_pods(a_sealing_config(dns=RESOLVER))
    for name in ("prober", "peer"):
        assert pods[name]["spec"]["dnsConfig"]["nameservers"] == ["10.96.0.52"]
    assert not {"dnsPolicy", "dnsConfig"} & pods["control"]["spec"].keys()


@pytest.mark.parametrize("name", ["peer", "prober", "control"])
def test_each_passes_restricted_pod_security_and_reaches_no_api(name: str) -> None:
    spec = the_pods(a_sealing_config())[name]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC", "volumes"} & spec.keys()
    (container,) = spec["containers"]
    security = container["securityContext"]
    assert security["runAsNonRoot"] and security["readOnlyRootFilesystem"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert (container["image"], container["imagePullPolicy"]) == (AIRGAP_IMAGE, "IfNotPresent")
    assert set(container["resources"]) == {"requests", "limits"}


def test_those_who_try_know_their_node_and_report_by_their_termination_message() -> None:
    for name in ("prober", "control"):
        (container,) = the_pods(a_sealing_config())[name]["spec"]["containers"]
        paths = {
            each["name"]: each["valueFrom"]["fieldRef"]["fieldPath"]
            for each in container["env"]
            if "valueFrom" in each
        }
        assert paths == {"NODE_IP": "status.hostIPs", "NODE_NAME": "spec.nodeName"}
        assert container["args"][-2:] == ["--result-file", container["terminationMessagePath"]]


def test_the_peers_service_has_no_address_and_selects_the_peer_only() -> None:
    service = peer_service(a_model())
    assert service["metadata"]["name"] == "mixtral-peer"
    assert service["spec"]["clusterIP"] == "None"
    labels = peer_pod(a_model(), a_sealing_config())["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert service["spec"]["selector"][LABEL_COMPONENT] == COMPONENT_PEER
    assert defects(service) == []


def test_a_run_has_an_id_of_its_own_that_a_new_operator_finds_again() -> None:
    model = a_model()
    first = new_run(model, "hash", "")
    assert first == new_run(a_model(), "hash", "")
    others = {
        new_run(model, "hash", first),
        new_run(model, "other", ""),
        new_run(a_model(uid="x"), "hash", ""),
    }
    assert first not in others
    assert len(others) == 3


def test_the_largest_plan_still_renders() -> None:
    many = [
        {
            "name": f"{'n' * 37}-{n:02}",
            "protocol": "DNS",
            "address": "2001:db8::1",
            "port": 53,
            "query": "x" * 40,
        }
        for n in range(46)
    ]
    plan = plan_of(prober_job(a_model("a" * 40), a_sealing_config(many), RUN))
    assert len(plan.targets) == 48
    assert set(CANARY_PATHS).isdisjoint(target.name for target in plan.targets)
