# SPDX-License-Identifier: Apache-2.0
"""Who may write the node cache, decided by the real API server: what its claim may be, and which pods of the
release's namespace get the node's folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

import pytest

from dev.cluster import Cluster
from sovereign_operator.desired.fetch_job import Fetch, fetch_job, scrub_job
from tests.controlplane.admission_site import (
    DIGEST,
    FETCH_POLICIES,
    FIREMAN,
    IMAGE,
    JOB_CONTROLLER,
    KUBERAY,
    OPERATOR,
    SOMEBODY,
    SYSTEM,
    Answer,
    Gate,
    a_claim,
    a_pod,
    guarded,
    in_force,
    rendered,
)
from tests.controlplane.api_server import Manifest, eventually
from tests.unit.operator.builders import a_config, a_model

CLAIM, PODS, JOBS = "sovereign-sealed-cache", "sovereign-fetch-pods", "sovereign-fetch-jobs"
PATH = "/var/lib/sovereign/cache"
FETCH = {"sovereign.dev/component": "fetch"}
SNAPSHOT = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "mine"}
EPHEMERAL_VOLUMES = "system:serviceaccount:kube-system:ephemeral-volume-controller"
CRON_CONTROLLER = "system:serviceaccount:kube-system:cronjob-controller"


@pytest.fixture(scope="module")
def gate(control_plane: Cluster) -> Iterator[Gate]:
    """The sealed namespace under the policies that hold there, and the release's with a node cache."""
    with guarded(control_plane) as gate:
        policies = rendered("nodeCache.enabled=true", names=FETCH_POLICIES)
        assert len(policies) == 2 * len(FETCH_POLICIES), "each with its binding"
        if not gate.get("Namespace", None, SYSTEM):
            gate.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}})
        with in_force(gate, policies):
            for name, bad in ((PODS, a_pod(hostNetwork=True)), (JOBS, a_job(FETCH, PATH))):
                eventually(partial(is_refused, gate, name, bad), f"{name} refuses", 60)
            yield gate


def is_refused(gate: Gate, policy: str, manifest: Manifest) -> bool:
    return tried(gate, manifest).refused_by(policy)


def the_claim(gate: Gate, **changes: object) -> Manifest:
    """The chart's own, for the sealed namespace; `changes` of its spec."""
    named = {"volumeName": f"sovereign-cache-{gate.sealed}", "storageClassName": ""}
    return a_claim("sovereign-cache", **{"accessModes": ["ReadOnlyMany"], **named, **changes})


def a_folder(path: str = PATH) -> Manifest:
    return {"name": "cache", "hostPath": {"path": path, "type": "DirectoryOrCreate"}}


def a_job(labels: Manifest, *paths: str) -> Manifest:
    template = {
        "metadata": {"labels": labels},
        "spec": {
            "restartPolicy": "Never",
            "containers": [{"name": "fetch", "image": IMAGE}],
            "volumes": [{**a_folder(path), "name": f"v{n}"} for n, path in enumerate(paths)],
        },
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "fetch-0123456789abcdef"},
        "spec": {"template": template},
    }


def tried(gate: Gate, manifest: Manifest, who: str = SOMEBODY) -> Answer:
    """Creating it in the release's namespace."""
    return gate.tries(manifest, who, SYSTEM)


def test_the_charts_own_claim_is_taken(gate: Gate) -> None:
    here = ("nodeCache.enabled=true", f"watchNamespaces={{{gate.sealed}}}")
    [claim] = rendered(*here, names=["sovereign-cache"])
    for each in (claim, the_claim(gate)):
        answer = gate.tries(each)
        assert answer.code == 201, answer.text


@pytest.mark.parametrize(
    "changes",
    [
        {"volumeName": "sovereign-cache-another"},
        {"volumeName": "mine"},
        {"volumeName": None, "storageClassName": "fast"},
        {"storageClassName": None},
        {"storageClassName": "fast"},
        {"dataSource": SNAPSHOT},
        {"dataSource": {"kind": "PersistentVolumeClaim", "name": "filled-by-me"}},
        {"dataSourceRef": SNAPSHOT},
    ],
    ids=str,
)
def test_a_claim_of_that_name_that_is_something_else_is_refused(gate: Gate, changes: Manifest) -> None:
    claim = the_claim(gate, **changes)
    for who in (SOMEBODY, FIREMAN, OPERATOR, EPHEMERAL_VOLUMES):
        answer = gate.tries(claim, who)
        assert answer.refused_by(CLAIM) or (answer.code == 403 and who == EPHEMERAL_VOLUMES), answer.text
    assert f"sovereign-cache-{gate.sealed}" in gate.tries(claim).text
    assert not gate.tries(claim, namespace=gate.open).refused


def test_claims_of_other_names_are_not_looked_at(gate: Gate) -> None:
    for name in ("weights", "sovereign-cache-2"):
        assert gate.tries(a_claim(name, volumeName=f"sovereign-cache-{gate.sealed}")).code == 201


def test_a_claim_from_before_can_be_released_and_deleted(gate: Gate) -> None:
    """The namespace gets its label after somebody's claim, which must not be there for ever."""
    name = "later"
    gate.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    claim = a_claim("sovereign-cache")
    claim["metadata"] |= {"namespace": name, "finalizers": ["example.com/mine"]}
    gate.create(claim)
    gate.patch("Namespace", None, name, {"metadata": {"labels": {"sovereign.dev/sealed": "true"}}})
    eventually(
        lambda: gate.tries(a_claim("sovereign-cache"), namespace=name).refused_by(CLAIM), "it is sealed"
    )
    gate.delete("PersistentVolumeClaim", name, "sovereign-cache")
    gate.patch("PersistentVolumeClaim", name, "sovereign-cache", {"metadata": {"finalizers": None}})
    eventually(lambda: not gate.get("PersistentVolumeClaim", name, "sovereign-cache"), "the claim is gone")
    gate.patch("Namespace", None, name, {"metadata": {"labels": {"sovereign.dev/sealed": None}}})
    gate.delete("Namespace", None, name)


def test_a_fetch_job_of_the_operator_and_its_pod_are_taken(gate: Gate) -> None:
    answer = tried(gate, a_job(FETCH, PATH), OPERATOR)
    assert answer.code == 201, answer.text
    answer = tried(gate, a_pod(labels=FETCH, volumes=[a_folder()]), JOB_CONTROLLER)
    assert answer.code == 201, answer.text


def fetches() -> list[Manifest]:
    """What the operator makes, with an image that the site may pull."""
    config = a_config(nodeCache={})
    config = config.model_copy(update={"images": config.images.model_copy(update={"airgap": IMAGE})})
    assert config.node_cache is not None
    fetch = Fetch("models", "gpu-a", f"models/org/name@{DIGEST}")
    return [make(fetch, a_model(), config, config.node_cache) for make in (fetch_job, scrub_job)]


def pod_of(job: Manifest) -> Manifest:
    template = job["spec"]["template"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "x", **template["metadata"]},
        "spec": template["spec"],
    }


@pytest.mark.parametrize("job", fetches(), ids=lambda job: str(job["metadata"]["name"])[:5])
def test_the_fetches_that_the_operator_makes_are_taken_and_are_not_more_than_they_say(
    gate: Gate, job: Manifest
) -> None:
    assert tried(gate, job, OPERATOR).code == 201
    answer = tried(gate, pod_of(job), JOB_CONTROLLER)
    assert answer.code == 201, answer.text
    # All that pod security has against it, below the level that docs/nodecache.md asks for.
    level: Manifest = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}}
    gate.patch("Namespace", None, gate.open, level)
    eventually(
        lambda: "PodSecurity" in gate.tries(a_pod(hostPID=True), namespace=gate.open).text, "it is enforced"
    )
    answer = gate.tries(pod_of(job), JOB_CONTROLLER, gate.open)
    level["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = None
    gate.patch("Namespace", None, gate.open, level)
    said = json.loads(answer.text)["message"]
    assert said.endswith('violates PodSecurity "baseline:latest": hostPath volumes (volume "cache")'), said


def test_nobody_else_makes_a_job_that_writes_the_node(gate: Gate) -> None:
    for who in (SOMEBODY, FIREMAN, KUBERAY, CRON_CONTROLLER):
        answer = tried(gate, a_job(FETCH, PATH), who)
        assert answer.refused_by(JOBS) or (answer.code == 403 and who == CRON_CONTROLLER), answer.text
    assert tried(gate, a_job({}), SOMEBODY).code == 201


@pytest.mark.parametrize(
    ("pod", "who", "named"),
    [
        (a_pod(labels=FETCH, volumes=[a_folder()]), SOMEBODY, SOMEBODY),
        (a_pod(labels=FETCH, volumes=[a_folder()]), OPERATOR, OPERATOR),
        (a_pod(volumes=[a_folder()]), JOB_CONTROLLER, JOB_CONTROLLER),
        (a_pod(labels=FETCH, volumes=[a_folder("/")]), JOB_CONTROLLER, "nodeCache.path"),
        (a_pod(labels=FETCH, volumes=[a_folder(f"{PATH}/models")]), JOB_CONTROLLER, "nodeCache.path"),
        (
            a_pod(labels=FETCH, volumes=[a_folder(), {**a_folder("/etc"), "name": "etc"}]),
            JOB_CONTROLLER,
            "/etc",
        ),
        (a_pod(hostNetwork=True), JOB_CONTROLLER, "hostNetwork"),
        (a_pod(hostPID=True), SOMEBODY, "hostPID"),
        (a_pod(container={"securityContext": {"privileged": True}}), OPERATOR, "privileged"),
        (
            a_pod(container={"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}),
            SOMEBODY,
            "capability",
        ),
        (a_pod(container={"ports": [{"containerPort": 80, "hostPort": 80}]}), SOMEBODY, "hostPort"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else str(value),
)
def test_no_other_pod_of_the_releases_namespace_gets_to_its_node(
    gate: Gate, pod: Manifest, who: str, named: str
) -> None:
    answer = tried(gate, pod, who)
    assert answer.refused_by(PODS), answer.text
    assert named in answer.text


def a_standing_pod(gate: Gate, name: str, who: str, pod: Manifest) -> str:
    """Kept in the release's namespace, so that it can be changed; its path."""
    if not gate.get("Pod", SYSTEM, name):
        eventually(lambda: gate.get("ServiceAccount", SYSTEM, "default"), "the namespace's account is there")
        made = {**pod, "metadata": {**pod["metadata"], "name": name, "namespace": SYSTEM}}
        answer = gate.ask(who, "POST", gate.path("Pod", SYSTEM), made)
        assert answer.code == 201, answer.text
    return gate.path("Pod", SYSTEM, name)


def a_debugger(gate: Gate, path: str, **container: object) -> Answer:
    """Somebody tries to put an ephemeral container into a pod of the release's namespace."""
    debugger = {"name": "debugger", "image": IMAGE, **container}
    body = {"spec": {"ephemeralContainers": [debugger]}}
    media = "application/strategic-merge-patch+json"
    return gate.ask(SOMEBODY, "PATCH", f"{path}/ephemeralcontainers?dryRun=All", body, media)


def test_nobody_gets_to_the_node_through_an_ephemeral_container(gate: Gate) -> None:
    path = a_standing_pod(gate, "plain", SOMEBODY, a_pod())
    for context in ({"privileged": True}, {"capabilities": {"add": ["SYS_ADMIN"]}}):
        answer = a_debugger(gate, path, securityContext=context)
        assert answer.refused_by(PODS), answer.text
        assert "privileged" in answer.text
    # Looking into the platform's own pods is nobody's business here.
    assert a_debugger(gate, path).code == 200


def test_a_fetch_pod_runs_what_its_job_says_and_nothing_else(gate: Gate) -> None:
    pod = a_pod(labels=FETCH, volumes=[a_folder()], initContainers=[{"name": "first", "image": IMAGE}])
    path = a_standing_pod(gate, "fetching", JOB_CONTROLLER, pod)
    for mounts in ([], [{"name": "cache", "mountPath": "/cache"}]):
        answer = a_debugger(gate, path, volumeMounts=mounts)
        assert answer.refused_by(PODS), answer.text
        assert "ephemeral" in answer.text
    other = f"registry.example/llm/mine@{DIGEST}"
    for field, name in (("containers", "main"), ("initContainers", "first")):
        body = {"spec": {field: [{"name": name, "image": other}]}}
        media = "application/strategic-merge-patch+json"
        answer = gate.ask(SOMEBODY, "PATCH", f"{path}?dryRun=All", body, media)
        assert answer.refused_by(PODS), answer.text
    shorter = {"spec": {"activeDeadlineSeconds": 60}, "metadata": {"labels": {"a": "b"}}}
    answer = gate.ask(JOB_CONTROLLER, "PATCH", f"{path}?dryRun=All", shorter, "application/merge-patch+json")
    assert answer.code == 200, answer.text


def test_the_platforms_own_pods_are_not_held_up(gate: Gate) -> None:
    for who in (SOMEBODY, JOB_CONTROLLER):
        assert tried(gate, a_pod(volumes=[{"name": "v", "emptyDir": {}}]), who).code == 201
    # What holds here holds nowhere else.
    assert not gate.tries(a_pod(hostPID=True, volumes=[a_folder("/")]), namespace=gate.open).refused


def test_every_expression_passes_the_api_servers_type_check(gate: Gate) -> None:
    for name in FETCH_POLICIES:
        assert not gate.type_warnings(name), name
