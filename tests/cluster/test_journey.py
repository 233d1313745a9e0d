# SPDX-License-Identifier: Apache-2.0
"""The whole path as a user walks it: apply, Ready, ask; lose a part; change the revision; delete.

One model on one cluster, the tests in their order: each begins where the one before ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from threading import Event
from time import monotonic

import pytest

from dev import outside, policy, stack
from dev.cluster import Cluster
from dev.demo import NAME, ask
from dev.kubectl import Kubectl, KubectlFailed, Manifest, condition, is_true, named
from dev.stack import MODELS, SYSTEM, Stack
from tests.cluster.audit import AuditLog
from tests.cluster.leaving import PodAddresses, names_asked, packets_out
from tests.cluster.registry_log import blobs_fetched
from tests.cluster.single_rank import single_rank_pod
from tests.cluster.until import READY_WITHIN, intruder, is_current, until

# The first test also waits for the images, which take their time where nothing is cached.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3000)]

OPERATOR = f"system:serviceaccount:{SYSTEM}:sovereign-operator"
PROMPT = "Who are you?"
RAY_LOGS = "/tmp/ray/session_latest/logs"


def wait_ready(kubectl: Kubectl) -> Manifest:
    return until(
        kubectl, "-n", MODELS, "smodel", named(NAME), holds=lambda m: is_current(m) and is_true(m, "Ready")
    )


def pods(kubectl: Kubectl, component: str) -> list[Manifest]:
    selector = f"sovereign.dev/model={NAME},sovereign.dev/component={component}"
    return kubectl.items("-n", MODELS, "pods", "-l", selector)


@pytest.fixture(scope="module", autouse=True)
def granted(installed: Stack) -> set[tuple[str, str]]:
    """What the chart lets the operator do: (verb, resource), read before the namespace and its Role go."""
    rights = set()
    for kind in ("roles", "clusterroles"):
        for role in installed.kubectl.items("-A", kind, "-l", "app.kubernetes.io/part-of=sovereign"):
            if role["metadata"]["name"].startswith("sovereign-operator-"):
                for rule in role["rules"]:
                    rights |= {(verb, resource) for verb in rule["verbs"] for resource in rule["resources"]}
    assert rights
    return rights


@pytest.fixture(scope="module", autouse=True)
def addresses(installed: Stack, node_cluster: Cluster) -> Iterator[PodAddresses]:
    """Who had which address, from before the model; what was sent before is forgotten."""
    with PodAddresses(installed.kubectl) as known:
        outside.forget(node_cluster)
        yield known


@pytest.fixture(scope="module")
def model(installed: Stack) -> Manifest:
    """The example, with a hub token as a gated repository would need it."""
    token = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "hub-token", "namespace": MODELS},
        "stringData": {"token": stack.HUB_TOKEN},
    }
    manifest = stack.example(NAME, installed.images, installed.revisions["first"])
    manifest["spec"]["source"]["huggingFace"]["tokenSecretRef"] = {"name": "hub-token"}
    installed.kubectl.apply(token, manifest)
    return manifest


def test_kubectl_wait_returns_and_the_model_answers(installed: Stack, model: Manifest) -> None:
    wait_ready(installed.kubectl)
    installed.kubectl("-n", MODELS, "wait", "--for=condition=Ready", f"smodel/{NAME}", "--timeout=10s")
    answer = ask(installed.kubectl, "What is a mixture of experts?")
    assert answer.model == NAME
    assert answer.tokens > 0


def test_experts_are_spread_over_two_worker_pods(installed: Stack, model: Manifest) -> None:
    workers = pods(installed.kubectl, "worker")
    assert len(workers) == 2
    ranks = set()
    for worker in workers:
        name, container = worker["metadata"]["name"], worker["spec"]["containers"][0]["name"]
        search = ("grep", "-rhoE", r"EP Rank [0-9]+/[0-9]+.*experts: [0-9]+/[0-9]+", RAY_LOGS)
        found = installed.kubectl("-n", MODELS, "exec", name, "-c", container, "--", *search)
        assert "4/8" in found
        ranks.add(found.split("EP Rank ")[1][:3])
    assert ranks == {"0/2", "1/2"}


def test_the_tokens_are_those_of_a_single_rank(installed: Stack, model: Manifest) -> None:
    kubectl = installed.kubectl
    kubectl.apply(single_rank_pod(kubectl, pods(kubectl, "worker")[0], PROMPT))
    until(
        kubectl,
        "-n",
        MODELS,
        "pod",
        named("single-rank"),
        holds=lambda p: _phase(p) in ("Succeeded", "Failed"),
    )
    said = kubectl("-n", MODELS, "logs", "single-rank", "-c", "single-rank")
    kubectl("-n", MODELS, "delete", "pod", "single-rank", "--wait=false")
    alone = json.loads(said.strip().splitlines()[-1])
    assert alone["text"], said
    assert ask(kubectl, PROMPT).text == alone["text"]


def _phase(pod: Manifest) -> str:
    return str(pod["status"].get("phase"))


def test_policies_existed_before_the_first_pod(installed: Stack, model: Manifest, audit: AuditLog) -> None:
    """The audit log tells the order: every policy was created before the RayService was."""
    made = [r for r in audit.by(OPERATOR) if r.created and r.namespace == MODELS]
    order = [r.resource for r in made if r.resource in ("networkpolicies", "rayservices")]
    policies = {r.name for r in made if r.resource == "networkpolicies"}
    assert policies == {
        p["metadata"]["name"] for p in installed.kubectl.items("-n", MODELS, "networkpolicies")
    }
    assert order == ["networkpolicies"] * len(policies) + ["rayservices"]


def test_a_resync_without_changes_sends_no_request(
    installed: Stack, model: Manifest, audit: AuditLog
) -> None:
    """Two resyncs pass (the cluster tests resync every 10 s): watches may be renewed, nothing else.

    But for a look where a pod changes by itself, as when a busy machine is late for its readiness probe.
    """
    wait_ready(installed.kubectl)
    audit.mark()
    Event().wait(25)  # the passing of time is what is tested here
    asked = [r for r in audit.by(OPERATOR) if r.verb != "watch"]
    assert [r for r in asked if r.writes] == []
    assert {(r.verb, r.resource) for r in asked} <= {("get", "sovereignmodels"), ("get", "namespaces")}


def test_a_lost_worker_comes_back_and_ready_tells_the_truth(installed: Stack, model: Manifest) -> None:
    lose(installed, "pod", pods(installed.kubectl, "worker")[0]["metadata"]["name"])
    assert len(pods(installed.kubectl, "worker")) == 2
    assert ask(installed.kubectl, "Are you back?").tokens > 0


def test_a_lost_policy_comes_back(installed: Stack, model: Manifest) -> None:
    kubectl = installed.kubectl
    name = kubectl.items("-n", MODELS, "networkpolicies")[0]["metadata"]["name"]
    uid = kubectl.get("-n", MODELS, "networkpolicy", name)["metadata"]["uid"]
    delete_policy(kubectl, name)
    _appears_anew(kubectl, "networkpolicy", name, uid)
    wait_ready(kubectl)


def delete_policy(kubectl: Kubectl, name: str) -> None:
    """As somebody who may: admission lets no person write policies into a sealed namespace."""
    intruder(kubectl)("-n", MODELS, "delete", "networkpolicy", name, "--wait=false")


def test_the_operator_pod_comes_back_and_changes_nothing(installed: Stack, model: Manifest) -> None:
    kubectl = installed.kubectl
    before = kubectl.get("-n", MODELS, "rayservice", NAME)["metadata"]["generation"]
    kubectl("-n", SYSTEM, "delete", "pod", "-l", "app.kubernetes.io/name=sovereign-operator", "--wait=true")
    kubectl("-n", SYSTEM, "rollout", "status", "deployment/sovereign-operator", "--timeout=180s", timeout=200)
    wait_ready(kubectl)
    assert ask(kubectl, "Still there?").tokens > 0
    assert kubectl.get("-n", MODELS, "rayservice", NAME)["metadata"]["generation"] == before


def test_a_lost_rayservice_comes_back(installed: Stack, model: Manifest) -> None:
    uid = installed.kubectl.get("-n", MODELS, "rayservice", NAME)["metadata"]["uid"]
    lose(installed, "rayservice", NAME)
    assert installed.kubectl.get("-n", MODELS, "rayservice", NAME)["metadata"]["uid"] != uid
    assert ask(installed.kubectl, "And now?").tokens > 0


def test_every_byte_came_once_though_every_pod_was_lost(installed: Stack, model: Manifest) -> None:
    """Three pods, each twice or more by now: the fetch Job's downloads and the single rank's are all."""
    fetched = blobs_fetched(installed.kubectl)
    files = installed.kubectl.get("-n", MODELS, "smodel", NAME)["status"]["artifact"]["files"]
    assert len(fetched) >= files
    assert set(fetched.values()) == {2}


def test_model_pods_are_restricted_and_have_no_way_to_the_registry(installed: Stack, model: Manifest) -> None:
    kubectl = installed.kubectl
    labels = kubectl.get("namespace", MODELS)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    registry = kubectl.get("-n", SYSTEM, "service", "sovereign-registry")["spec"]
    address = (registry["clusterIP"], registry["ports"][0]["port"])
    call = f"import socket; socket.create_connection({address!r}, timeout=3)"
    for component in ("head", "worker"):
        pod = pods(kubectl, component)[0]
        where = (pod["metadata"]["name"], "-c", pod["spec"]["containers"][0]["name"])
        with pytest.raises(KubectlFailed, match="timed out"):
            kubectl("-n", MODELS, "exec", *where, "--", "python", "-c", call)
        with pytest.raises(KubectlFailed, match="Read-only file system"):
            kubectl("-n", MODELS, "exec", *where, "--", "touch", "/weights/planted")


def lose(installed: Stack, kind: str, name: str) -> None:
    """Delete a part; Ready must turn away from True, then return."""
    kubectl = installed.kubectl
    kubectl("-n", MODELS, "delete", kind, name, "--wait=false")
    until(kubectl, "-n", MODELS, "smodel", named(NAME), holds=lambda m: not is_true(m, "Ready"), seconds=180)
    wait_ready(kubectl)


def _appears_anew(kubectl: Kubectl, kind: str, name: str, old_uid: str) -> None:
    for seen in kubectl.watch("-n", MODELS, kind, named(name), seconds=120):
        if seen["metadata"]["uid"] != old_uid:
            return
    raise AssertionError(f"{kind} {name} did not come back within 120 s")


def test_nothing_but_the_probe_ever_tried_to_leave(
    installed: Stack, model: Manifest, node_cluster: Cluster, addresses: PodAddresses
) -> None:
    """Every packet that a pod sends out of the cluster's ranges is counted, denied or not."""
    tried = packets_out(node_cluster, addresses)
    assert tried.pop("prober") > 0
    assert tried.pop("control") > 0
    assert tried == {}


def test_nobody_but_the_prober_asked_for_a_name_outside(installed: Stack, model: Manifest) -> None:
    asked = names_asked(installed.kubectl)
    probed = {name for name in asked if name.endswith(f"{outside.NAME}.")}
    assert probed
    assert asked - probed == set()


def test_a_planted_phone_home_is_seen_and_goes_nowhere(
    installed: Stack, model: Manifest, node_cluster: Cluster, addresses: PodAddresses
) -> None:
    worker = pods(installed.kubectl, "worker")[0]
    name, container = worker["metadata"]["name"], worker["spec"]["containers"][0]["name"]
    for call in (
        f"create_connection(('{outside.WEB}', 443), timeout=3)",
        "getaddrinfo('stats.example', 443)",
    ):
        call = f"import socket; socket.{call}"
        with pytest.raises(KubectlFailed, match=r"timed out|Name or service not known"):
            installed.kubectl("-n", MODELS, "exec", name, "-c", container, "--", "python", "-c", call)
    assert packets_out(node_cluster, addresses)["worker"] > 0
    assert "stats.example." in names_asked(installed.kubectl)


def test_a_network_that_stops_enforcing_stops_the_model_until_a_person_lets_it_go(
    installed: Stack, model: Manifest, node_cluster: Cluster
) -> None:
    kubectl = installed.kubectl
    wait_ready(kubectl)
    policy.stop(node_cluster)
    # A policy deleted by hand is put back, and the seal is proven anew: that is what finds it.
    delete_policy(kubectl, kubectl.items("-n", MODELS, "networkpolicies")[0]["metadata"]["name"])
    seen = until(kubectl, "-n", MODELS, "smodel", named(NAME), holds=_is_isolated, seconds=400)
    assert condition(seen, "EgressSealed")["reason"] == "PolicyNotEnforced"
    assert not is_true(seen, "Ready")
    deadline = monotonic() + 180
    while left := [*pods(kubectl, "worker"), *pods(kubectl, "head")]:
        assert monotonic() < deadline, [pod["metadata"]["name"] for pod in left]

    policy.start(node_cluster)
    kubectl("-n", MODELS, "annotate", "smodel", NAME, "sovereign.dev/release-isolation=network-repaired")

    wait_ready(kubectl)
    assert ask(kubectl, "Are you back?").tokens > 0


def _is_isolated(model: Manifest) -> bool:
    return bool(model.get("status", {}).get("egress", {}).get("isolated"))


def test_a_changed_revision_is_served_only_once_it_is_verified(installed: Stack, model: Manifest) -> None:
    kubectl = installed.kubectl
    fetched = blobs_fetched(kubectl)
    old = wait_ready(kubectl)["status"]
    before = ask(kubectl, PROMPT).text
    change = {"spec": {"source": {"huggingFace": {"revision": installed.revisions["second"]}}}}
    kubectl("-n", MODELS, "patch", "smodel", NAME, "--type=merge", "-p", json.dumps(change))
    moved = False
    for seen in kubectl.watch("-n", MODELS, "smodel", named(NAME), seconds=READY_WITHIN):
        status = seen["status"]
        mirrored = is_current(seen) and is_true(seen, "Mirrored")
        mirrored = mirrored and status["artifact"]["revision"] == installed.revisions["second"]
        if not mirrored and not moved:
            live = kubectl.get("-n", MODELS, "rayservice", NAME)
            assert old["artifact"]["digest"] in json.dumps(live), (
                "the old model was touched before the new was there"
            )
        moved = moved or mirrored
        if moved and is_current(seen) and is_true(seen, "Ready"):
            break
    new = wait_ready(kubectl)["status"]
    assert new["artifact"]["digest"] != old["artifact"]["digest"]
    assert new["artifact"]["revision"] == installed.revisions["second"]
    # What both revisions have was linked on the node: the new one brought its own blobs, and once.
    brought = {path: times for path, times in blobs_fetched(kubectl).items() if times != fetched.get(path)}
    assert set(brought.values()) == {1}
    assert len(brought) < len(fetched)
    assert ask(kubectl, PROMPT).text != before, (
        "two random models with the same greedy tokens: is it the new one?"
    )


@pytest.mark.parametrize("cascade", ["foreground", "background"])
def test_deletion_keeps_policies_until_the_last_pod_is_gone(
    installed: Stack, model: Manifest, cascade: str
) -> None:
    kubectl = installed.kubectl
    start_pods(kubectl, model)
    kubectl("-n", MODELS, "delete", "smodel", NAME, f"--cascade={cascade}", "--wait=false")
    assert_policies_outlive_pods(kubectl)
    owner = f"sovereign.dev/owner={NAME},sovereign.dev/owner-namespace={MODELS}"
    deadline = monotonic() + 60  # the garbage collector takes its time, not the operator
    while left := [
        f"{item['kind']} {item['metadata']['name']}"
        for item in (
            *kubectl.items("-n", MODELS, "pods,networkpolicies,rayservices,rayclusters,services,secrets"),
            *kubectl.items("-n", SYSTEM, "jobs,secrets", "-l", owner),
        )
        if item["metadata"]["name"] != "hub-token"
    ]:
        assert monotonic() < deadline, left


def start_pods(kubectl: Kubectl, model: Manifest) -> None:
    """Apply the model where there is none and return once it has its head; it need not answer.

    A prober is a pod of the model too, but there is nothing of Ray to delete while only that is there.
    """
    if kubectl.find("-n", MODELS, "smodel", NAME) is None:
        kubectl.apply(model)
    selector = f"sovereign.dev/model={NAME},sovereign.dev/component=head"
    until(kubectl, "-n", MODELS, "pods", "-l", selector, holds=lambda pod: bool(pod), seconds=300)


def _all_pods(kubectl: Kubectl) -> list[Manifest]:
    return kubectl.items("-n", MODELS, "pods", "-l", f"sovereign.dev/model={NAME}")


def assert_policies_outlive_pods(kubectl: Kubectl) -> None:
    """Follow the deletion to its end: while a pod of the model is left, no policy may be missing."""
    wanted = {p["metadata"]["name"] for p in kubectl.items("-n", MODELS, "networkpolicies")}
    assert wanted
    deadline = monotonic() + 300
    while kubectl.find("-n", MODELS, "smodel", NAME) is not None:
        # Policies first: a pod that is still listed afterwards was there when they were read.
        try:
            policies = {p["metadata"]["name"] for p in kubectl.items("-n", MODELS, "networkpolicies")}
            running = [p["metadata"]["name"] for p in _all_pods(kubectl)]
        except KubectlFailed:
            break  # the namespace is gone
        assert not running or wanted <= policies, f"{running} ran without {wanted - policies}"
        assert monotonic() < deadline, f"not deleted within 300 s; pods left: {running}, policies: {policies}"


def test_deleting_the_namespace_keeps_policies_until_the_last_pod_is_gone(
    installed: Stack, model: Manifest
) -> None:
    kubectl = installed.kubectl
    start_pods(kubectl, model)
    kubectl("delete", "namespace", MODELS, "--wait=false")
    assert_policies_outlive_pods(kubectl)
    deadline = monotonic() + 240
    while namespace := kubectl.find("namespace", MODELS):
        assert monotonic() < deadline, namespace["status"]


def test_nothing_was_refused_and_no_right_is_unused(
    installed: Stack, audit: AuditLog, granted: set[tuple[str, str]]
) -> None:
    """The whole journey ran under the chart's rights: not one 403, and no rule that nobody needed."""
    requests = list(audit.by(OPERATOR))
    # A namespace that is going takes nothing new, whoever asks and whatever their rights; and the Role in it
    # goes first, so that what the chart grants is refused there for a moment too.
    refused = {r for r in requests if r.code == 403 and "being terminated" not in r.message}
    assert {r for r in refused if r.namespace != MODELS or (r.verb, r.resource) not in granted} == set()
    used = {(r.verb, r.resource) for r in requests}
    # A watch stands for the list before it; an apply that answers 201 needed the right to create.
    used |= {(verb, r.resource) for r in requests if r.verb == "watch" for verb in ("get", "list")}
    used |= {("create", r.resource) for r in requests if r.created}
    only_on_openshift = {("update", "sovereignmodels/finalizers")}
    assert granted - used == only_on_openshift
