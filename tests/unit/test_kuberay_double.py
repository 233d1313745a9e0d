# SPDX-License-Identifier: Apache-2.0
"""The pure part of the KubeRay stand-in: what it renders and decides from a RayService."""

import copy
from typing import Any

import pytest

from dev.kuberay import names, suspension
from dev.kuberay.cluster_spec import (
    as_typed_client_writes,
    invalid,
    is_extended_cluster,
    is_same_cluster,
    needs_new_cluster,
    ray_cluster,
)
from dev.kuberay.conditions import is_true, reason_of, set_condition
from dev.kuberay.controller import Backoff
from dev.kuberay.pods import Host, desired_workers, head_pod, worker_pod
from dev.kuberay.quantities import whole
from dev.kuberay.ray_cluster import auth_secret, cluster_status, free_indices, is_finished, replicas_of
from dev.kuberay.ray_service import write_conditions
from dev.kuberay.serve import application_status, are_running
from dev.kuberay.services import (
    cluster_head_service,
    headless_worker_service,
    serve_service,
    service_head_service,
)
from dev.kuberay.suspension import Step

Manifest = dict[str, Any]
NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"


def a_template(**container: Any) -> Manifest:
    ray = {
        "name": "ray",
        "image": "registry.example/serving@sha256:0",
        "env": [{"name": "HF_HUB_OFFLINE", "value": "1"}],
        "securityContext": {"runAsNonRoot": True},
        "resources": {"limits": {"memory": "4Gi"}, "requests": {"cpu": "500m"}},
        **container,
    }
    return {"metadata": {"labels": {"sovereign.dev/model": "tiny"}}, "spec": {"containers": [ray]}}


def a_group(**fields: Any) -> Manifest:
    return {
        "groupName": "ranks",
        "replicas": 2,
        "minReplicas": 2,
        "maxReplicas": 2,
        "numOfHosts": 1,
        "rayStartParams": {"num-cpus": "3"},
        "template": a_template(ports=[{"name": "serve", "containerPort": 8000}]),
        **fields,
    }


def a_service(**spec: Any) -> Manifest:
    config = {
        "rayVersion": "2.60.0",
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "include-dashboard": "true"},
            "template": a_template(
                ports=[{"name": "dashboard", "containerPort": 8265}, {"name": "serve", "containerPort": 8000}]
            ),
        },
        "workerGroupSpecs": [a_group()],
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {
            "name": "tiny",
            "namespace": "models",
            "uid": "u-1",
            "generation": 3,
            "annotations": {"sovereign.dev/rendered": "abc"},
        },
        "spec": {"serveConfigV2": "applications: []", "rayClusterConfig": config, **spec},
    }


def a_cluster(service: Manifest | None = None) -> Manifest:
    cluster = ray_cluster(service or a_service(), "tiny-abcde")
    cluster["metadata"]["uid"] = "u-2"
    return cluster


def environment(container: Manifest) -> dict[str, Any]:
    return {
        variable["name"]: variable.get("value", variable.get("valueFrom")) for variable in container["env"]
    }


def test_a_head_pod_starts_ray_with_the_parameters_of_its_group() -> None:
    pod = head_pod(a_cluster())
    ray = pod["spec"]["containers"][0]
    assert ray["command"] == ["/bin/bash", "-c", "--"]
    assert ray["args"] == [
        "ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-65536}; ray start --head  --block "
        " --dashboard-agent-listen-port=52365  --dashboard-host=0.0.0.0  --include-dashboard=true "
        " --memory=4294967296  --metrics-export-port=8080  --num-cpus=0 "
    ]
    assert environment(ray)["KUBERAY_GEN_RAY_START_CMD"] in ray["args"][0]
    assert environment(ray)["RAY_ADDRESS"] == "127.0.0.1:6379"
    assert "initContainers" not in pod["spec"]


def test_a_worker_waits_for_the_head_by_its_cluster_name_and_connects_to_it() -> None:
    cluster = a_cluster()
    pod = worker_pod(cluster, a_group(), Host(1))
    wait, ray = pod["spec"]["initContainers"][0], pod["spec"]["containers"][0]
    address = "tiny-abcde-head-svc.models.svc.cluster.local"
    assert (wait["name"], wait["image"]) == ("wait-gcs-ready", ray["image"])
    assert f"ray health-check --address {address}:6379" in wait["args"][0]
    assert wait["securityContext"] == {"runAsNonRoot": True}
    assert f"--address={address}:6379" in ray["args"][0]
    assert environment(ray)["FQ_RAY_IP"] == environment(wait)["FQ_RAY_IP"] == address
    assert environment(ray)["RAY_IP"] == "tiny-abcde-head-svc"
    assert "RAY_CLUSTER_NAME" not in environment(wait)


def test_a_users_init_container_runs_before_the_wait_for_the_head() -> None:
    group = a_group()
    group["template"]["spec"]["initContainers"] = [
        {"name": "pull", "image": "registry.example/airgap@sha256:0"}
    ]
    containers = worker_pod(a_cluster(), group, Host(0))["spec"]["initContainers"]
    assert [c["name"] for c in containers] == ["pull", "wait-gcs-ready"]
    assert "RAY_AUTH_TOKEN" not in environment(containers[0])


def test_the_token_reaches_the_ray_containers_and_the_wait_for_the_head() -> None:
    cluster = a_cluster()
    secret = auth_secret(cluster)
    assert secret is not None
    pod = worker_pod(cluster, a_group(), Host(0))
    for container in (pod["spec"]["containers"][0], pod["spec"]["initContainers"][0]):
        reference = environment(container)["RAY_AUTH_TOKEN"]["secretKeyRef"]
        assert reference == {"name": secret["metadata"]["name"], "key": "auth_token"}
        assert environment(container)["RAY_AUTH_MODE"] == "token"


def test_without_token_mode_there_is_no_secret() -> None:
    cluster = a_cluster()
    del cluster["spec"]["authOptions"]
    assert auth_secret(cluster) is None
    assert "RAY_AUTH_MODE" not in environment(head_pod(cluster)["spec"]["containers"][0])


def test_what_the_user_set_is_not_overwritten_but_identity_labels_are() -> None:
    service = a_service()
    template = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]
    template["spec"]["containers"][0]["env"].append({"name": "RAY_PORT", "value": "7000"})
    template["metadata"]["labels"] |= {names.LABEL_CLUSTER: "other", "app.kubernetes.io/name": "ours"}
    pod = head_pod(a_cluster(service))
    assert [e["value"] for e in pod["spec"]["containers"][0]["env"] if e["name"] == "RAY_PORT"] == ["7000"]
    assert pod["metadata"]["labels"][names.LABEL_CLUSTER] == "tiny-abcde"
    assert pod["metadata"]["labels"]["app.kubernetes.io/name"] == "ours"


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        (head_pod(a_cluster()), {"node-type": "head", "group": "headgroup", "serve": "false"}),
        (
            worker_pod(a_cluster(), a_group(), Host(0)),
            {"node-type": "worker", "group": "ranks", "serve": "true"},
        ),
    ],
)
def test_pods_carry_kuberays_labels_and_ours(pod: Manifest, expected: dict[str, str]) -> None:
    labels = pod["metadata"]["labels"]
    assert {key: labels[f"ray.io/{key}"] for key in expected} == expected
    assert labels["ray.io/is-ray-node"] == "yes"
    assert labels["ray.io/identifier"] == f"tiny-abcde-{expected['node-type']}"
    assert labels["sovereign.dev/model"] == "tiny"
    assert pod["metadata"]["ownerReferences"][0]["uid"] == "u-2"


def test_a_workers_readiness_asks_the_serve_proxy_through_wget_and_grep() -> None:
    ready = worker_pod(a_cluster(), a_group(), Host(0))["spec"]["containers"][0]["readinessProbe"]
    assert ready["exec"]["command"] == [
        "bash",
        "-c",
        "wget --tries 1 -T 2 -q -O- http://localhost:52365/api/local_raylet_healthz | grep success && "
        "wget --tries 1 -T 10 -q -O- http://localhost:8000/-/healthz | grep success",
    ]
    assert ready["failureThreshold"] == 1


@pytest.mark.parametrize(("version", "kind"), [("2.60.0", "httpGet"), ("2.52.1", "exec"), ("", "exec")])
def test_a_heads_probe_depends_on_rays_version(version: str, kind: str) -> None:
    service = a_service()
    service["spec"]["rayClusterConfig"]["rayVersion"] = version
    ray = head_pod(a_cluster(service))["spec"]["containers"][0]
    assert kind in ray["livenessProbe"]
    assert kind in ray["readinessProbe"]


def test_a_probe_of_the_user_stays() -> None:
    group = a_group()
    group["template"]["spec"]["containers"][0]["readinessProbe"] = {"tcpSocket": {"port": 1}}
    ray = worker_pod(a_cluster(), group, Host(0))["spec"]["containers"][0]
    assert ray["readinessProbe"] == {"tcpSocket": {"port": 1}}


def test_shared_memory_is_added_only_where_nothing_is_mounted_there() -> None:
    added = worker_pod(a_cluster(), a_group(), Host(0))["spec"]
    assert added["volumes"] == [{"name": "shared-mem", "emptyDir": {"medium": "Memory", "sizeLimit": "4Gi"}}]
    group = a_group()
    group["template"]["spec"]["containers"][0]["volumeMounts"] = [{"name": "shm", "mountPath": "/dev/shm"}]
    assert "volumes" not in worker_pod(a_cluster(), group, Host(0))["spec"]


def test_accelerators_become_gpus_only_when_the_resource_is_called_so() -> None:
    def arguments(resource: str) -> str:
        group = a_group()
        group["template"]["spec"]["containers"][0]["resources"]["limits"][resource] = "4"
        return str(worker_pod(a_cluster(), group, Host(0))["spec"]["containers"][0]["args"][0])

    assert "--num-gpus=4" in arguments("nvidia.com/gpu")
    assert "--num-gpus" not in arguments("sovereign.dev/accelerator")


def test_hosts_of_one_replica_share_its_name_and_have_their_own_index() -> None:
    group = a_group(numOfHosts=2)
    pods = [worker_pod(a_cluster(), group, Host(0, host, "ranks-x")) for host in range(2)]
    assert {p["metadata"]["labels"][names.LABEL_REPLICA_NAME] for p in pods} == {"ranks-x"}
    assert [p["metadata"]["labels"][names.LABEL_HOST_INDEX] for p in pods] == ["0", "1"]


@pytest.mark.parametrize(
    ("fields", "pods"),
    [
        ({}, 2),
        ({"numOfHosts": 2}, 4),
        ({"replicas": 5, "maxReplicas": 3}, 3),
        ({"replicas": 0, "minReplicas": 1}, 1),
        ({"replicas": 0, "minReplicas": 0}, 0),
    ],
)
def test_worker_pods_are_replicas_within_their_bounds_times_hosts(fields: dict[str, int], pods: int) -> None:
    assert desired_workers(a_group(**fields)) == pods


@pytest.mark.parametrize(
    ("text", "number"),
    [("200m", 1), ("2", 2), ("2Gi", 2147483648), ("1500m", 2), ("4G", 4000000000), ("0", 0), ("0.5", 1)],
)
def test_quantities_are_read_as_whole_numbers_rounded_up(text: str, number: int) -> None:
    assert whole(text) == number


def test_rendering_leaves_its_input_alone() -> None:
    cluster = a_cluster()
    before = copy.deepcopy(cluster)
    head_pod(cluster)
    worker_pod(cluster, cluster["spec"]["workerGroupSpecs"][0], Host(0))
    assert cluster == before


def test_the_clusters_head_service_publishes_a_head_that_is_not_ready() -> None:
    service = cluster_head_service(a_cluster())
    assert service["metadata"]["name"] == "tiny-abcde-head-svc"
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert [p["name"] for p in service["spec"]["ports"]] == ["dashboard", "metrics", "serve"]
    pod = head_pod(a_cluster())
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()


def test_the_services_of_a_ray_service_belong_to_it_and_point_at_one_cluster() -> None:
    owner, cluster = a_service(), a_cluster()
    head, serve = service_head_service(owner, cluster), serve_service(owner, cluster)
    assert (head["metadata"]["name"], serve["metadata"]["name"]) == ("tiny-head-svc", "tiny-serve-svc")
    assert serve["spec"] == {
        "selector": {"ray.io/cluster": "tiny-abcde", "ray.io/serve": "true"},
        "ports": [{"name": "serve", "port": 8000}],
    }
    for service in (head, serve):
        assert service["metadata"]["ownerReferences"][0]["kind"] == "RayService"
        assert service["metadata"]["labels"][names.LABEL_CREATOR_NAME] == "tiny"


def test_the_service_of_the_hosts_selects_workers_only() -> None:
    selector = headless_worker_service(a_cluster())["spec"]["selector"]
    assert selector == {"ray.io/cluster": "tiny-abcde", "ray.io/node-type": "worker"}


def edited(edit: Any) -> Manifest:
    service = a_service()
    edit(service["spec"], service["spec"]["rayClusterConfig"])
    return service


IGNORED = {
    "replicas": lambda spec, config: config["workerGroupSpecs"][0].update(replicas=5, maxReplicas=5),
    "tolerations": lambda spec, config: config["workerGroupSpecs"][0]["template"]["spec"].update(
        tolerations=[{"operator": "Exists"}]
    ),
    "head tolerations": lambda spec, config: config["headGroupSpec"]["template"]["spec"].update(
        tolerations=[{}]
    ),
    "serve config": lambda spec, config: spec.update(serveConfigV2="applications: [{}]"),
    "empty maps": lambda spec, config: config["workerGroupSpecs"][0].update(scaleStrategy={}),
}
NOTICED = {
    "image": lambda spec, config: config["workerGroupSpecs"][0]["template"]["spec"]["containers"][0].update(
        image="b"
    ),
    "head image": lambda spec, config: config["headGroupSpec"]["template"]["spec"]["containers"][0].update(
        image="b"
    ),
    "hosts": lambda spec, config: config["workerGroupSpecs"][0].update(numOfHosts=2),
    "a group less": lambda spec, config: config["workerGroupSpecs"].clear(),
}


@pytest.mark.parametrize("edit", IGNORED.values(), ids=IGNORED.keys())
def test_changes_that_kuberay_mutes_make_no_new_cluster(edit: Any) -> None:
    assert is_same_cluster(edited(edit), a_cluster())
    assert not needs_new_cluster(edited(edit), a_cluster(), None)


@pytest.mark.parametrize("edit", NOTICED.values(), ids=NOTICED.keys())
def test_other_changes_make_a_new_cluster_unless_upgrades_are_off(edit: Any) -> None:
    assert needs_new_cluster(edited(edit), a_cluster(), None)
    off = edited(edit)
    off["spec"]["upgradeStrategy"] = {"type": "None"}
    assert not needs_new_cluster(off, a_cluster(), None)


def test_a_group_added_at_the_end_is_added_in_place() -> None:
    service = edited(lambda spec, config: config["workerGroupSpecs"].append(a_group(groupName="more")))
    assert is_extended_cluster(service, a_cluster())
    assert not needs_new_cluster(service, a_cluster(), None)


def test_with_upgrades_off_the_first_cluster_is_made_all_the_same() -> None:
    service = a_service(upgradeStrategy={"type": "None"})
    assert needs_new_cluster(service, None, None)


def test_during_an_upgrade_the_pending_cluster_is_compared() -> None:
    service = edited(NOTICED["image"])
    assert not needs_new_cluster(service, a_cluster(), a_cluster(service))
    assert needs_new_cluster(a_service(), a_cluster(), a_cluster(service))


def test_a_cluster_carries_our_rendered_hash_and_its_creator() -> None:
    metadata = a_cluster()["metadata"]
    assert metadata["annotations"]["sovereign.dev/rendered"] == "abc"
    assert metadata["labels"][names.LABEL_CREATOR_KIND] == "RayService"


def test_an_update_of_the_whole_object_adds_empty_structs_and_canonical_quantities() -> None:
    service = a_service()
    limits = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0][
        "resources"
    ]
    limits["limits"] = {"memory": "4096Mi", "cpu": "2000m"}
    group = as_typed_client_writes(service)["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    assert group["scaleStrategy"] == {}
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"] == {"memory": "4Gi", "cpu": "2"}
    assert is_same_cluster(service, a_cluster(service))


def test_a_token_needs_a_ray_that_knows_it() -> None:
    old = a_service()
    old["spec"]["rayClusterConfig"]["rayVersion"] = "2.51.0"
    assert "2.52.0" in (invalid(old) or "")
    assert invalid(a_service()) is None


def with_condition(kind: str, *, suspend: bool) -> Manifest:
    service = a_service(suspend=suspend)
    service["status"] = {"conditions": [{"type": kind, "status": "True"}]}
    return service


@pytest.mark.parametrize(
    ("service", "step"),
    [
        (a_service(), Step.RUN),
        (a_service(suspend=True), Step.BEGIN),
        (with_condition("Suspending", suspend=True), Step.DELETE),
        (with_condition("Suspending", suspend=False), Step.DELETE),
        (with_condition("Suspended", suspend=True), Step.STAY),
        (with_condition("Suspended", suspend=False), Step.RESUME),
    ],
)
def test_a_suspension_once_begun_runs_to_its_end(service: Manifest, step: Step) -> None:
    assert suspension.next_step(service) is step


def test_a_suspension_says_in_the_status_where_it_stands() -> None:
    status: Manifest = {"activeServiceStatus": {"rayClusterName": "tiny-abcde"}, "numServeEndpoints": 2}
    suspension.begin(status, 4, NOW)
    assert (status["activeServiceStatus"], status["observedGeneration"]) == ({}, 4)
    assert reason_of(status, "Ready") == "SuspendInProgress"
    suspension.finish(status, NOW)
    assert is_true(status, "Suspended")
    assert not is_true(status, "Suspending")
    suspension.resume(status, 5, LATER)
    assert reason_of(status, "Ready") == "Initializing"
    assert next(c for c in status["conditions"] if c["type"] == "Ready")["lastTransitionTime"] == LATER


def test_ready_follows_the_endpoints() -> None:
    status: Manifest = {"activeServiceStatus": {}, "pendingServiceStatus": {}, "numServeEndpoints": 0}
    write_conditions(status, NOW)
    assert reason_of(status, "Ready") == "Initializing"
    status |= {"numServeEndpoints": 1, "activeServiceStatus": {"rayClusterName": "a"}}
    write_conditions(status, NOW)
    assert reason_of(status, "Ready") == "NonZeroServeEndpoints"
    assert reason_of(status, "UpgradeInProgress") == "NoPendingCluster"
    status |= {"numServeEndpoints": 0, "pendingServiceStatus": {"rayClusterName": "b"}}
    write_conditions(status, NOW)
    assert reason_of(status, "Ready") == "ZeroServeEndpoints"
    assert is_true(status, "UpgradeInProgress")


def test_a_condition_that_does_not_change_keeps_its_time() -> None:
    status: Manifest = {}
    set_condition(status, "Ready", False, "A", "", now=NOW)
    set_condition(status, "Ready", False, "B", "", now=LATER)
    assert status["conditions"][0]["lastTransitionTime"] == NOW
    set_condition(status, "Ready", True, "C", "", now=LATER)
    assert status["conditions"][0]["lastTransitionTime"] == LATER


def a_pod(role: str, *, ready: bool, phase: str = "Running", **labels: str) -> Manifest:
    return {
        "metadata": {"name": f"{role}-{id(labels)}", "labels": {names.LABEL_NODE_TYPE: role, **labels}},
        "spec": {"containers": [{"name": "ray"}]},
        "status": {
            "phase": phase,
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "podIP": "10.0.0.1",
        },
    }


def test_a_cluster_is_ready_when_the_head_and_all_workers_are() -> None:
    cluster = a_cluster()
    head, worker = a_pod("head", ready=True), a_pod("worker", ready=True)
    waiting = cluster_status(cluster, [head, worker], NOW)
    assert "state" not in waiting
    status = cluster_status(cluster, [head, worker, copy.deepcopy(worker)], NOW)
    assert status["state"] == "ready"
    assert status["readyWorkerReplicas"] == status["desiredWorkerReplicas"] == 2
    assert is_true(status, "HeadPodReady")
    lost = cluster_status({**cluster, "status": status}, [worker], LATER)
    assert not is_true(lost, "HeadPodReady")
    assert is_true(lost, "RayClusterProvisioned")


def test_a_pod_is_finished_by_its_phase_or_when_its_container_may_not_restart() -> None:
    assert is_finished(a_pod("worker", ready=False, phase="Failed"))
    ended = a_pod("worker", ready=False)
    ended["status"]["containerStatuses"] = [{"name": "ray", "state": {"terminated": {}}}]
    assert not is_finished(ended)
    ended["spec"]["restartPolicy"] = "Never"
    assert is_finished(ended)


def test_replicas_over_several_hosts_are_grouped_and_free_indices_found() -> None:
    pods = [
        a_pod("worker", ready=True, **{names.LABEL_REPLICA_NAME: name, names.LABEL_REPLICA_INDEX: index})
        for name, index in (("a", "0"), ("a", "0"), ("b", "2"))
    ]
    assert {name: len(members) for name, members in replicas_of(pods, 2).items()} == {"a": 2, "b": 1}
    assert free_indices(pods, 2) == [1, 3]


def test_applications_are_mirrored_and_all_must_run() -> None:
    answer = {
        "status": "DEPLOYING",
        "message": "",
        "deployments": {"Ingress": {"status": "UPDATING", "message": "waits"}},
    }
    assert application_status(answer) == {
        "status": "DEPLOYING",
        "serveDeploymentStatuses": {"Ingress": {"status": "UPDATING", "message": "waits"}},
    }
    assert not are_running({})
    assert not are_running({"a": {"status": "RUNNING"}, "b": {"status": "DEPLOYING"}})
    assert are_running({"a": {"status": "RUNNING"}})


def test_what_fails_is_tried_again_later_and_later(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    backoff = Backoff(clock=lambda: now)
    pauses = []
    for _ in range(8):
        backoff.failed("x", OSError("away"))
        pauses.append(backoff.failures["x"][1])
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert len(caplog.records) == 1
    assert not backoff.is_due("x")
    backoff.succeeded("x")
    assert backoff.is_due("x")
