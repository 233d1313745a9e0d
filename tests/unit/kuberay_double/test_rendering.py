# SPDX-License-Identifier: Apache-2.0
"""What the KubeRay stand-in makes of a RayService: pods, services, the token."""

import copy
from typing import Any

import pytest

from dev.kuberay import names
from dev.kuberay.pods import Host, desired_workers, head_pod, worker_pod
from dev.kuberay.quantities import whole
from dev.kuberay.ray_cluster import auth_secret
from dev.kuberay.services import (
    cluster_head_service,
    headless_worker_service,
    serve_service,
    service_head_service,
)
from tests.unit.kuberay_double.objects import Manifest, a_cluster, a_group, a_service


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


def test_the_labels_of_a_group_win_over_those_of_its_template_and_lose_to_identity() -> None:
    service = a_service()
    config = service["spec"]["rayClusterConfig"]
    labels = {"sovereign.dev/model": "another", "zone": "a", names.LABEL_CLUSTER: "other"}
    for group in (config["headGroupSpec"], *config["workerGroupSpecs"]):
        group["labels"] = labels
    cluster = a_cluster(service)
    for pod in (head_pod(cluster), worker_pod(cluster, config["workerGroupSpecs"][0], Host(0))):
        found = pod["metadata"]["labels"]
        assert (found["sovereign.dev/model"], found["zone"]) == ("another", "a")
        assert found[names.LABEL_CLUSTER] == "tiny-abcde"


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
