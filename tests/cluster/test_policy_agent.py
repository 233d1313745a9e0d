# SPDX-License-Identifier: Apache-2.0
"""Network policies on real pods: what the agent (a double of a network plugin) enforces, and when.

Packets are sent from inside the pods' network namespaces, because a denied path is only silence, and silence
is shorter in a test than in a program that a pod runs. What a pod does in its first instruction, it does.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from dev import outside, policy
from dev.cluster import Cluster, dns, runtime
from dev.cluster.process import awaited
from dev.kubectl import Kubectl, Manifest
from tests.cluster.witness import a_pod
from tests.unit.policy.links import connects, echoed, pinged
from tests.unit.policy.objects import a_policy

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

NAMESPACE = "policy-agent"
NODE, PORT = "10.244.0.1", 8080
DENY = a_policy("deny", NAMESPACE, app="sealed", policyTypes=["Ingress", "Egress"])


@dataclass(frozen=True)
class Site:
    """Pods `server`, `free` and `sealed`; a Service in front of the server; policies come and go."""

    cluster: Cluster
    kubectl: Kubectl
    image: str

    def network(self, pod: str) -> str:
        """The pod's network namespace, as the pid of its sandbox holds it."""
        listed = runtime.ctr(self.cluster, "tasks", "list").stdout.splitlines()
        pids = {row[0]: row[1] for row in map(str.split, listed) if len(row) > 1}
        for record in (policy.folder(self.cluster) / "sandboxes").glob("*.json"):
            if f'"name": "{pod}"' in record.read_text() and record.stem in pids:
                return f"/proc/{pids[record.stem]}/ns/net"
        raise AssertionError(f"{pod} has no sandbox")

    def addresses(self, pod: str) -> list[str]:
        """IPv4, then IPv6."""
        status = self.kubectl.get("-n", NAMESPACE, "pod", pod)["status"]
        return [one["ip"] for one in status["podIPs"]]

    def service(self) -> str:
        return str(self.kubectl.get("-n", NAMESPACE, "service", "server")["spec"]["clusterIP"])

    def run(self, *pods: Manifest) -> None:
        self.kubectl.apply(
            *({**pod, "metadata": {**pod["metadata"], "namespace": NAMESPACE}} for pod in pods)
        )

    def wait(self, pod: str, condition: str) -> None:
        self.kubectl("-n", NAMESPACE, "wait", f"pod/{pod}", f"--for={condition}", "--timeout=60s")

    def phase_at_the_end(self, pod: str) -> str:
        def phase() -> str:
            return str(self.kubectl.get("-n", NAMESPACE, "pod", pod)["status"]["phase"])

        assert awaited(lambda: phase() in ("Succeeded", "Failed"), 60, interval=0.3)
        return phase()


@pytest.fixture(scope="module")
def site(node_cluster: Cluster, kubectl: Kubectl, image: str) -> Iterator[Site]:
    made = Site(node_cluster, kubectl, image)
    kubectl("create", "namespace", NAMESPACE)
    names = ("server", "free", "sealed")
    made.run(*(a_pod(image, name) for name in names))
    kubectl("-n", NAMESPACE, "expose", "pod", "server", "--port=80", f"--target-port={PORT}")
    for name in names:
        made.wait(name, "condition=Ready")
    # The node's rules for a Service come after its pod is ready.
    assert awaited(lambda: connects(made.network("free"), made.service(), 80), 60, interval=0.3)
    yield made
    policy.start(node_cluster)
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture(autouse=True)
def clean(site: Site) -> Iterator[None]:
    """Each test begins with the agent on and no policy."""
    yield
    site.kubectl("-n", NAMESPACE, "delete", "networkpolicy", "--all")
    policy.start(site.cluster)


def an_eager_pod(image: str, name: str, target: str, app: str) -> Manifest:
    """A pod whose first instruction opens a connection; its exit status says whether that came about."""
    pod = a_pod(image, name, restartPolicy="Never")
    container = pod["spec"]["containers"][0]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        del container[probe]
    container["args"] = ["dial", target]
    pod["metadata"]["labels"] = {"app": app}
    return pod


def test_pods_have_two_addresses_and_reach_one_another_where_no_policy_is(site: Site) -> None:
    sealed = site.network("sealed")
    four, six = site.addresses("server")
    assert (four.count("."), six.startswith("fd00:10:244::")) == (3, True)
    assert connects(sealed, four, PORT)
    assert connects(sealed, six, PORT)
    assert connects(sealed, site.service(), 80)


def test_a_selected_pod_is_closed_in_both_directions_and_families_and_others_are_not(site: Site) -> None:
    site.kubectl.apply(DENY)
    policy.settle(site.cluster)
    sealed, free = site.network("sealed"), site.network("free")
    for address in site.addresses("server"):
        assert not connects(sealed, address, PORT)
        assert connects(free, address, PORT)
    assert not connects(sealed, site.service(), 80)
    for address in site.addresses("sealed"):
        assert not connects(free, address, PORT)


def test_selectors_open_their_ports_and_a_service_shows_the_pod_that_asks(site: Site) -> None:
    server = {"podSelector": {"matchLabels": {"app": "server"}}}
    sealed = {"podSelector": {"matchLabels": {"app": "sealed"}}}
    site.kubectl.apply(
        DENY,
        a_policy(
            "out",
            NAMESPACE,
            "sealed",
            policyTypes=["Egress"],
            egress=[{"to": [server], "ports": [{"port": PORT}]}],
        ),
        a_policy("in", NAMESPACE, "server", policyTypes=["Ingress"], ingress=[{"from": [sealed]}]),
    )
    policy.settle(site.cluster)
    asking, other = site.network("sealed"), site.network("free")
    for address in site.addresses("server"):
        assert connects(asking, address, PORT)
        assert not connects(other, address, PORT)
    assert connects(asking, site.service(), 80)
    assert not connects(other, site.service(), 80), "masqueraded, and still judged by who asks"


def test_rules_are_in_before_the_first_instruction_of_a_pod(site: Site) -> None:
    site.kubectl.apply(DENY)
    target = f"{site.addresses('server')[0]}:{PORT}"
    eager = [an_eager_pod(site.image, f"eager-{number}", target, "sealed") for number in range(3)]
    site.run(*eager, an_eager_pod(site.image, "eager-free", target, "other"))
    assert site.phase_at_the_end("eager-free") == "Succeeded"
    assert [site.phase_at_the_end(f"eager-{number}") for number in range(3)] == ["Failed"] * 3


def test_the_own_node_is_always_reachable_and_the_api_server_is_not_part_of_it(site: Site) -> None:
    sealed, api = site.network("sealed"), site.cluster.api_port
    assert connects(sealed, "10.96.0.1", 443)
    site.kubectl.apply(DENY)
    policy.settle(site.cluster)
    assert connects(sealed, NODE, 10250)
    assert not connects(sealed, "10.96.0.1", 443)
    assert not connects(sealed, NODE, api)
    opened = a_policy("api", NAMESPACE, "sealed", policyTypes=["Egress"], egress=[{"ports": [{"port": api}]}])
    site.kubectl.apply(opened)
    policy.settle(site.cluster)
    assert connects(sealed, "10.96.0.1", 443)


def reached(site: Site, pod: str) -> dict[str, bool]:
    """Each path to the outside by its name."""
    place = site.network(pod)
    paths = {
        **{f"tcp-{port}": connects(place, outside.WEB, port) for port in outside.TCP_PORTS},
        **{f"udp-{port}": echoed(place, outside.WEB, port) is not None for port in (443, 123)},
        "icmp": pinged(place, outside.WEB),
        "metadata": connects(place, outside.METADATA, 80),
        "other-node": connects(place, outside.OTHER_NODE, 10250),
    }
    if outside.has_ipv6():
        paths |= {"tcp6-443": connects(place, outside.WEB6, 443)}
        paths |= {"udp6-443": echoed(place, outside.WEB6, 443) is not None}
    return paths


def test_the_outside_is_reached_by_an_unselected_pod_and_on_no_path_by_a_selected_one(site: Site) -> None:
    site.kubectl.apply(DENY)
    policy.settle(site.cluster)
    outside.forget(site.cluster)
    assert all(reached(site, "free").values()), reached(site, "free")
    assert not any(reached(site, "sealed").values()), reached(site, "sealed")
    counted = outside.counts(site.cluster)
    (free4, free6), (sealed4, _) = site.addresses("free"), site.addresses("sealed")
    assert counted[free4, outside.METADATA] > 0
    assert counted[sealed4, outside.METADATA] > 0, "a packet that is dropped later has left its pod"
    assert not outside.has_ipv6() or counted[free6, outside.WEB6] > 0
    quiet = site.addresses("server")
    assert not [pair for pair in counted if pair[0] in quiet], "the server never tried"


def test_a_killed_agent_leaves_its_rules_and_no_new_pod_starts(site: Site) -> None:
    site.kubectl.apply(DENY)
    policy.settle(site.cluster)
    process = site.cluster.processes.find(policy.PROCESS)
    assert process
    os.kill(process.pid, signal.SIGKILL)
    assert awaited(lambda: not policy.running(site.cluster), 10)
    tables = subprocess.check_output(["nft", "list", "tables"], text=True).splitlines()
    assert [name for name in policy.tables_of(site.cluster) if f"table inet {name}" in tables]
    assert not connects(site.network("sealed"), site.addresses("server")[0], PORT)
    site.run(a_pod(site.image, "waiting"))

    def refused() -> bool:
        events = site.kubectl.items("-n", NAMESPACE, "events", "--field-selector=involvedObject.name=waiting")
        return any("policy agent" in event["message"] for event in events)

    assert awaited(refused, 60, interval=0.5)
    policy.start(site.cluster)
    site.wait("waiting", "condition=Ready")
    assert not connects(site.network("sealed"), site.addresses("server")[0], PORT)


def test_with_a_lag_a_new_pod_is_open_at_first_and_closed_soon(site: Site) -> None:
    site.kubectl.apply(DENY)
    policy.start(site.cluster, lag_seconds=15)
    target = site.addresses("server")[0]
    late = a_pod(site.image, "late")
    late["metadata"]["labels"] = {"app": "sealed"}
    site.run(late, an_eager_pod(site.image, "eager-late", f"{target}:{PORT}", "sealed"))
    assert not connects(site.network("sealed"), target, PORT), "old pods are not open again"
    assert site.phase_at_the_end("eager-late") == "Succeeded"
    site.wait("late", "jsonpath={.status.phase}=Running")
    assert awaited(lambda: not connects(site.network("late"), target, PORT), 60)


def test_without_the_agent_nothing_is_enforced(site: Site) -> None:
    site.kubectl.apply(DENY)
    policy.settle(site.cluster)
    policy.stop(site.cluster)
    assert not policy.running(site.cluster)
    target = site.addresses("server")[0]
    assert connects(site.network("sealed"), target, PORT)
    assert connects(site.network("sealed"), outside.WEB, 443)
    site.run(an_eager_pod(site.image, "eager-off", f"{target}:{PORT}", "sealed"))
    assert site.phase_at_the_end("eager-off") == "Succeeded"
    policy.start(site.cluster)
    assert not connects(site.network("sealed"), target, PORT), (
        "as before, though its pod began without an agent"
    )


def test_cluster_dns_can_be_made_to_answer_outside_names_as_one_that_forwards_would(site: Site) -> None:
    def answer() -> str:
        command = ("exec", "free", "--", "/witness", "resolve", f"{outside.NAME}.")
        done = subprocess.run(
            [*site.cluster.kubectl, "-n", NAMESPACE, *command], capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    assert answer() == ""
    try:
        dns.forwarding(site.cluster)
        assert awaited(lambda: answer() == outside.WEB, 20, interval=0.5)
    finally:
        dns.forwarding(site.cluster, on=False)
    assert awaited(lambda: answer() == "", 20, interval=0.5)
