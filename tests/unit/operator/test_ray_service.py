# SPDX-License-Identifier: Apache-2.0
"""The RayService: the examples as goldens, and what must hold for each of them."""

from __future__ import annotations

from typing import Any, cast

import pytest
import yaml

from sovereign_operator.api import (
    ANNOTATION_RENDERED,
    LABEL_COMPONENT,
    LABEL_MODEL,
    AllToAll,
    Device,
    SovereignModel,
)
from sovereign_operator.config import OperatorConfig
from sovereign_operator.desired.ray_service import ray_service, scalar
from sovereign_operator.desired.rendered import defects
from sovereign_operator.placement import plan
from sovereign_operator.values import Manifest, NodeFacts, Placement
from sovereign_serving import offline
from sovereign_serving.arguments import ingress_deployment, llm_config, parse
from tests.conftest import Golden
from tests.unit.operator.builders import (
    AIRGAP_IMAGE,
    CANARY,
    PRODUCT,
    a_config,
    a_gpu_taint,
    a_model,
    a_node,
    a_sealing_config,
    an_artifact,
    an_example,
    the_facts,
    with_rdma,
)

EXAMPLES = ("deepseek-v3", "mistral-medium-3.5", "mistral-small-4", "mixtral-8x7b", "tiny-moe")
EMBEDDED = a_sealing_config(productLabel="sovereign.dev/accelerator-product", nodeCache={})


def example_nodes(name: str) -> list[NodeFacts]:
    """Nodes on which an example runs."""
    if name == "tiny-moe":
        return [a_node("node", 8, "Embedded-CPU", "sovereign.dev/accelerator", memory_mib=None)]
    product, memory = (PRODUCT, 81559) if name == "mixtral-8x7b" else ("NVIDIA-H200", 143771)
    labels = {"topology.kubernetes.io/zone": "hall-a"}
    return [
        a_node(each, 8, product, memory_mib=memory, labels=labels, taints=(a_gpu_taint(),))
        for each in ("a", "b")
    ]


def rendered(model: SovereignModel, name: str, config: OperatorConfig | None = None) -> Manifest:
    config = config or (EMBEDDED if name == "tiny-moe" else a_sealing_config(nodeCache={}))
    placement = plan(model.spec, the_facts(name), example_nodes(name), config)
    assert isinstance(placement, Placement), placement
    return ray_service(model, an_artifact(name), placement, config)


def rendered_for(model: SovereignModel, config: OperatorConfig | None = None) -> Manifest:
    """The same for a model of the builders, on one plain node."""
    placement = plan(model.spec, the_facts(), [a_node()], config or a_config())
    assert isinstance(placement, Placement), placement
    return ray_service(model, an_artifact(), placement, config or a_config())


def groups_of(service: Manifest) -> list[Manifest]:
    """The head's group and the workers'."""
    cluster = service["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def containers_of(group: Manifest) -> list[Manifest]:
    spec = group["template"]["spec"]
    return [*spec["initContainers"], *spec["containers"]]


def environment_of(container: Manifest) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container["env"]}


class Readable(yaml.SafeDumper):
    """Text of several lines as a block, and no anchors, so that a golden can be reviewed."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


Readable.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_renders_to_its_golden(name: str, golden: Golden) -> None:
    text = yaml.dump(rendered(an_example(name), name), Dumper=Readable, sort_keys=False, width=110)
    golden(f"rayservice/{name}.yaml", f"# SPDX-License-Identifier: Apache-2.0\n{text}")


def test_a_model_with_rdma_renders_to_its_golden(golden: Golden) -> None:
    model = with_rdma(an_example("deepseek-v3"), per_worker=8)
    text = yaml.dump(rendered(model, "deepseek-v3"), Dumper=Readable, sort_keys=False, width=110)
    golden("rayservice/deepseek-v3-rdma.yaml", f"# SPDX-License-Identifier: Apache-2.0\n{text}")


@pytest.mark.parametrize("name", EXAMPLES)
def test_nothing_changes_on_the_way_through_the_api_server(name: str) -> None:
    assert defects(rendered(an_example(name), name)) == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_application_understands_its_arguments(name: str) -> None:
    model = an_example(name)
    (application,) = yaml.safe_load(rendered(model, name)["spec"]["serveConfigV2"])["applications"]
    assert application["import_path"] == "sovereign_serving.app:build"
    arguments = parse(application["args"])
    assert (arguments.model_id, arguments.model_path) == (model.name, "/weights")


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_offline_block_is_on_head_and_workers_as_the_application_demands(name: str) -> None:
    model = an_example(name)
    for group in groups_of(rendered(model, name)):
        (ray,) = group["template"]["spec"]["containers"]
        offline.require(environment_of(ray), device=model.spec.serving.device.value)
        first, *_ = ray["env"]
        assert first["name"] == "POD_IP"  # $(POD_IP) sees earlier entries only
        for container in group["template"]["spec"]["initContainers"]:
            assert offline.FIXED.items() <= environment_of(container).items()


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_container_passes_restricted_pod_security(name: str) -> None:
    for group in groups_of(rendered(an_example(name), name)):
        spec = group["template"]["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"} & spec.keys()
        kinds = {kind for volume in spec["volumes"] for kind in volume}
        assert kinds <= {"name", "emptyDir", "downwardAPI", "persistentVolumeClaim"}
        for container in containers_of(group):
            security = container["securityContext"]
            assert security["runAsNonRoot"] is True
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_pod_is_in_the_sealed_set(name: str) -> None:
    model = an_example(name)
    labels = [group["template"]["metadata"]["labels"] for group in groups_of(rendered(model, name))]
    assert labels == [{LABEL_MODEL: model.name, LABEL_COMPONENT: part} for part in ("head", "worker")]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_dashboard_needs_a_token_and_no_replica_lands_on_the_head(name: str) -> None:
    cluster = rendered(an_example(name), name)["spec"]["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == "2.60.0"
    assert cluster["enableInTreeAutoscaling"] is False
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    limits = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert set(limits) == {"memory"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_needs_no_kernel_that_the_serving_image_does_not_carry(name: str) -> None:
    parallelism = an_example(name).spec.serving.parallelism
    assert parallelism is None or parallelism.all_to_all in (None, AllToAll.ALLGATHER_REDUCESCATTER)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_head_sees_no_accelerator_and_a_worker_those_of_its_device_plugin(name: str) -> None:
    model = an_example(name)
    head, workers = (
        environment_of(group["template"]["spec"]["containers"][0])
        for group in groups_of(rendered(model, name))
    )
    assert "NVIDIA_VISIBLE_DEVICES" not in workers
    expected = "void" if model.spec.serving.device is Device.CUDA else None
    assert head.get("NVIDIA_VISIBLE_DEVICES") == expected


def test_weights_are_pulled_by_digest_and_the_head_takes_the_small_files_only() -> None:
    head, workers = groups_of(rendered(an_example("mixtral-8x7b"), "mixtral-8x7b"))
    small, whole = (group["template"]["spec"]["initContainers"][-1] for group in (head, workers))
    reference = f"oci://sovereign-registry.sovereign-system.svc:5000/{an_artifact('mixtral-8x7b').reference}"
    assert whole["args"] == [
        "pull",
        reference,
        "/weights",
        "--plain-http",
        "--result-file",
        "/dev/termination-log",
    ]
    assert small["args"] == [*whole["args"][:3], "--config-only", *whole["args"][3:]]
    for group in (head, workers):
        (ray,) = group["template"]["spec"]["containers"]
        (mount,) = [each for each in ray["volumeMounts"] if each["name"] == "weights"]
        assert mount == {"name": "weights", "mountPath": "/weights", "readOnly": True}


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_model_pod_does_anything_before_the_seal_is_in_force_on_its_node(name: str) -> None:
    model = an_example(name)
    for group in groups_of(rendered(model, name)):
        first = group["template"]["spec"]["initContainers"][0]
        assert first["args"][:2] == ["probe", "wait"]
        wanted = {"--canary": CANARY, "--peer": f"{model.name}-peer.{model.namespace}.svc.cluster.local"}
        options = dict(zip(first["args"][2::2], first["args"][3::2], strict=True))
        assert options == wanted | {"--seconds": "60", "--result-file": "/dev/termination-log"}
        assert first["image"] == AIRGAP_IMAGE


@pytest.mark.parametrize("changes", [{"seal": "Report"}, {"probe": {}}])
def test_nothing_waits_for_a_seal_that_is_not_required_or_that_nobody_can_prove(
    changes: dict[str, Any],
) -> None:
    for group in groups_of(rendered_for(a_model(), a_sealing_config(**changes))):
        assert [each["name"] for each in group["template"]["spec"]["initContainers"]] == ["weights"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_image_that_is_on_the_node_is_not_pulled_again(name: str) -> None:
    for group in groups_of(rendered(an_example(name), name)):
        assert {each["imagePullPolicy"] for each in containers_of(group)} == {"IfNotPresent"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_head_need_not_ask_where_it_runs_and_reports_to_nobody(name: str) -> None:
    head, _ = groups_of(rendered(an_example(name), name))
    (ray,) = head["template"]["spec"]["containers"]
    (file,) = [
        each for each in ray["volumeMounts"] if each["mountPath"].endswith("ray_bootstrap_config.yaml")
    ]
    (volume,) = [each for each in head["template"]["spec"]["volumes"] if each["name"] == file["name"]]
    (item,) = volume["downwardAPI"]["items"]
    assert item["path"] == file["subPath"]
    field = item["fieldRef"]["fieldPath"].removeprefix("metadata.annotations['").removesuffix("']")
    assert yaml.safe_load(head["template"]["metadata"]["annotations"][field]) == {}
    environment = {each["name"]: each.get("value") for each in ray["env"]}
    assert file["mountPath"] == f"{environment['HOME']}/{file['subPath']}"
    assert str(environment["RAY_USAGE_STATS_REPORT_URL"]).startswith("http://127.0.0.1:")


def test_weights_fit_their_volume() -> None:
    pulling = [name for name in EXAMPLES if an_example(name).spec.delivery.mode == "ephemeral"]
    assert len(pulling) == len(EXAMPLES) - 2
    for name in pulling:
        _, workers = groups_of(rendered(an_example(name), name))
        (volume,) = [each for each in workers["template"]["spec"]["volumes"] if each["name"] == "weights"]
        text = volume["emptyDir"]["sizeLimit"]
        units = {"Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4}
        assert int(text[:-2]) * units[text[-2:]] > the_facts(name).bytes_total


@pytest.mark.parametrize(
    ("name", "replicas", "hosts", "accelerators", "cpus"),
    [
        (
            "tiny-moe",
            1,
            2,
            ("sovereign.dev/accelerator", "1"),
            "3",
        ),  # one rank, and a spare CPU for the ingress
        ("mixtral-8x7b", 1, None, ("nvidia.com/gpu", "2"), "3"),
        ("mistral-small-4", 1, None, ("nvidia.com/gpu", "4"), "3"),
        ("deepseek-v3", 1, 2, ("nvidia.com/gpu", "8"), "17"),
    ],
)
def test_workers_follow_the_placement(
    name: str, replicas: int, hosts: int | None, accelerators: tuple[str, str], cpus: str
) -> None:
    _, group = groups_of(rendered(an_example(name), name))
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == replicas
    assert group.get("numOfHosts") == hosts
    resource, amount = accelerators
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"][resource] == amount
    assert group["rayStartParams"]["num-cpus"] == cpus


def test_a_rank_over_two_pods_is_one_group_of_hosts() -> None:
    model = a_model(serving={"parallelism": {"tensor": 8, "pipeline": 2}, "replicas": 3})
    placement = plan(model.spec, None, [a_node(f"n{n}") for n in range(6)], a_config())
    assert isinstance(placement, Placement)
    _, group = groups_of(ray_service(model, an_artifact(), placement, a_config()))
    assert (group["replicas"], group["numOfHosts"]) == (3, 2)
    started_with = group["rayStartParams"]
    assert (started_with["num-cpus"], started_with["num-gpus"]) == ("3", "8")


@pytest.mark.parametrize(
    ("parallelism", "replicas"),
    [
        ({"tensor": 8, "data": 2, "expert": True}, 1),
        ({"tensor": 8, "data": 4, "expert": True}, 1),
        ({"tensor": 4, "data": 4, "expert": True}, 1),
        ({"tensor": 4, "data": 4, "expert": True}, 2),
        ({"data": 8, "expert": True}, 1),
        ({"tensor": 8}, 2),
        ({"tensor": 4}, 2),
    ],
)
def test_a_worker_holds_its_ranks_and_an_ingress_and_not_one_rank_more(
    parallelism: dict[str, Any], replicas: int
) -> None:
    """By Ray's book-keeping, as the operator starts a worker and as the application asks for one."""
    model = a_model(serving={"parallelism": parallelism, "replicas": replicas})
    placement = plan(model.spec, None, [a_node(f"n{n}") for n in range(4)], a_config())
    assert isinstance(placement, Placement), placement
    service = ray_service(model, an_artifact(), placement, a_config())
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    arguments = parse(application["args"])
    of_a_rank, of_an_ingress = (
        options["ray_actor_options"]["num_cpus"]
        for options in (cast(Any, llm_config(arguments)["deployment_config"]), ingress_deployment(arguments))
    )
    _, group = groups_of(service)
    spare = int(group["rayStartParams"]["num-cpus"]) - placement.ranks_per_worker * of_a_rank
    assert of_an_ingress * placement.pods <= spare < of_a_rank


def test_every_pod_of_a_rank_that_takes_several_has_an_ingress_and_so_a_proxy() -> None:
    model = a_model(serving={"parallelism": {"tensor": 8, "pipeline": 2}, "replicas": 3})
    placement = plan(model.spec, None, [a_node(f"n{n}") for n in range(6)], a_config())
    assert isinstance(placement, Placement)
    service = ray_service(model, an_artifact(), placement, a_config())
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    assert parse(application["args"]).ingresses == 6
    for name in EXAMPLES:
        (application,) = yaml.safe_load(rendered(an_example(name), name)["spec"]["serveConfigV2"])[
            "applications"
        ]
        assert "ingresses" not in application["args"]


def test_every_ray_node_is_told_its_agents_ports() -> None:
    """Left to itself, an agent on a busy host reports its port too late, and Ray ends the node."""
    for group in groups_of(rendered(an_example("tiny-moe"), "tiny-moe")):
        started_with = group["rayStartParams"]
        assert started_with["dashboard-agent-grpc-port"] != started_with["runtime-env-agent-port"]


def test_the_heads_client_server_is_no_port_of_the_head() -> None:
    """Ray starts it and cannot be told not to; it runs whatever it is sent, and no Service may lead there."""
    head, _ = groups_of(rendered(an_example("tiny-moe"), "tiny-moe"))
    ports = head["template"]["spec"]["containers"][0]["ports"]
    assert 10001 not in [port["containerPort"] for port in ports]


def test_pods_are_pinned_by_product_labels_and_tolerations() -> None:
    head, workers = (
        group["template"]["spec"] for group in groups_of(rendered(an_example("deepseek-v3"), "deepseek-v3"))
    )
    assert workers["nodeSelector"] == {
        "nvidia.com/gpu.product": "NVIDIA-H200",
        "topology.kubernetes.io/zone": "hall-a",
    }
    assert head["nodeSelector"] == {"topology.kubernetes.io/zone": "hall-a"}
    assert workers["tolerations"] == head["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]


def test_what_a_user_says_about_resources_wins() -> None:
    _, group = groups_of(rendered(an_example("deepseek-v3"), "deepseek-v3"))
    resources = group["template"]["spec"]["containers"][0]["resources"]
    assert resources["requests"] == {"cpu": "64", "memory": "512Gi"}
    assert resources["limits"]["memory"] == "512Gi"


@pytest.mark.parametrize(("strategy", "kind"), [("recreate", "None"), ("newCluster", "NewCluster")])
def test_upgrades_are_mapped(strategy: str, kind: str) -> None:
    service = rendered_for(a_model(upgrade={"strategy": strategy}))
    assert service["spec"]["upgradeStrategy"] == {"type": kind}


def test_it_belongs_to_the_model_and_carries_its_hash() -> None:
    metadata = rendered_for(a_model(uid="abc"))["metadata"]
    assert metadata["ownerReferences"][0]["uid"] == "abc"
    assert metadata["annotations"][ANNOTATION_RENDERED]


def test_the_same_input_gives_the_same_bytes_and_no_shared_parts() -> None:
    one, other = (rendered_for(a_model()) for _ in range(2))
    assert one == other
    one["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["securityContext"].clear()
    assert rendered_for(a_model()) == other


def test_the_cpu_profile_asks_for_no_accelerators_of_ray() -> None:
    model = an_example("tiny-moe")
    assert model.spec.serving.device is Device.CPU
    service = rendered(model, "tiny-moe")
    assert all(group["rayStartParams"]["num-gpus"] == "0" for group in groups_of(service))
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    assert application["args"]["device"] == "cpu"


def test_a_sealed_resolver_takes_the_place_of_the_clusters_dns() -> None:
    config = a_config(dns={"namespace": "sovereign-system", "clusterIp": "10.96.0.53"})
    for group in groups_of(rendered_for(a_model(), config)):
        spec = group["template"]["spec"]
        assert spec["dnsPolicy"] == "None"
        assert spec["dnsConfig"]["nameservers"] == ["10.96.0.53"]
        assert spec["dnsConfig"]["searches"][0] == "models.svc.cluster.local"


def test_a_private_authority_is_mounted_where_pull_looks_for_it() -> None:
    config = a_config(registry={"host": "r:5000", "writer": "r:5001", "caConfigMap": "site-ca"})
    _, workers = groups_of(rendered_for(a_model(), config))
    (delivery,) = workers["template"]["spec"]["initContainers"]
    assert "--ca" in delivery["args"] and "--plain-http" not in delivery["args"]
    assert {"name": "registry-ca", "configMap": {"name": "site-ca"}} in workers["template"]["spec"]["volumes"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("8", 8),
        ("0.92", 0.92),
        ("bfloat16", "bfloat16"),
        ("'8'", "8"),
        ("2026-01-01", "2026-01-01"),
    ],
)
def test_an_engine_argument_is_a_typed_scalar(text: str, value: object) -> None:
    found = scalar("x", text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["", "null", "[1]", "{a: 1}", "{"])
def test_an_engine_argument_that_is_no_scalar_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"engineArgs\.dtype"):
        scalar("dtype", text)
