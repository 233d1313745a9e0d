# SPDX-License-Identifier: Apache-2.0
"""From the operator's arguments to Ray Serve LLM's configuration: a table of what is built and refused."""

import pytest

from sovereign_serving.arguments import (
    ArgumentsRefused,
    engine_kwargs,
    ingress_deployment,
    llm_config,
    parse,
)
from sovereign_serving.engine_arguments import REFUSED, TUNABLE, objection_to


def some_arguments(**changes: object) -> dict[str, object]:
    """What the operator renders for a model on one GPU, with changes."""
    return {"model_id": "tiny-moe", "model_path": "/weights", "device": "cuda", **changes}


def test_one_gpu_is_configured_without_any_default_of_the_engine() -> None:
    assert llm_config(parse(some_arguments())) == {
        "model_loading_config": {"model_id": "tiny-moe", "model_source": "/weights"},
        "engine_kwargs": {
            "data_parallel_size": 1,
            "enable_expert_parallel": False,
            "load_format": "safetensors",
            "pipeline_parallel_size": 1,
            "tensor_parallel_size": 1,
            "trust_remote_code": False,
        },
        "placement_group_config": {"bundle_per_worker": {"GPU": 1}, "strategy": "PACK"},
        "deployment_config": {
            "num_replicas": 1,
            "ray_actor_options": {"num_cpus": 2},
            "health_check_period_s": 10,
            "health_check_timeout_s": 60,
        },
        "callback_config": {
            "callback_class": "sovereign_serving.replica:StartOffline",
            "callback_kwargs": {"device": "cuda"},
        },
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tensor": 4}, {"tensor_parallel_size": 4}),
        ({"pipeline": 2}, {"pipeline_parallel_size": 2}),
        ({"data": 2, "expert": True}, {"data_parallel_size": 2, "enable_expert_parallel": True}),
        ({"tensor": 2, "expert": True}, {"tensor_parallel_size": 2, "enable_expert_parallel": True}),
        (
            {"data": 16, "expert": True, "redundantExperts": 32},
            {
                "data_parallel_size": 16,
                "enable_expert_parallel": True,
                "enable_eplb": True,
                "eplb_config": {"num_redundant_experts": 32},
            },
        ),
        (
            {"data": 2, "expert": True, "allToAll": "deepep_low_latency"},
            {
                "data_parallel_size": 2,
                "enable_expert_parallel": True,
                "all2all_backend": "deepep_low_latency",
            },
        ),
        ({"maxModelLen": 131072}, {"max_model_len": 131072}),
        (
            {"engineArgs": {"dtype": "bfloat16", "enforce_eager": True, "gpu_memory_utilization": 0.9}},
            {"dtype": "bfloat16", "enforce_eager": True, "gpu_memory_utilization": 0.9},
        ),
    ],
)
def test_a_field_of_the_manifest_becomes_an_engine_argument(
    changes: dict[str, object], expected: dict[str, object]
) -> None:
    plain = engine_kwargs(parse(some_arguments()))
    assert engine_kwargs(parse(some_arguments(**changes))) == plain | expected


def test_a_switch_stays_a_switch_and_a_number_a_number() -> None:
    kwargs = engine_kwargs(parse(some_arguments(engineArgs={"enforce_eager": True, "max_num_seqs": 1})))
    assert kwargs["enforce_eager"] is True
    assert type(kwargs["max_num_seqs"]) is int


def test_the_ranks_of_a_cpu_replica_stay_in_one_pod() -> None:
    config = llm_config(parse(some_arguments(device="cpu", tensor=2, expert=True)))
    assert config["placement_group_config"] == {"bundle_per_worker": {"CPU": 1}, "strategy": "STRICT_PACK"}


def test_there_is_an_ingress_for_each_replica_and_it_fits_beside_the_ranks() -> None:
    assert ingress_deployment(parse(some_arguments(replicas=3))) == {
        "autoscaling_config": {"min_replicas": 3, "max_replicas": 3},
        "health_check_timeout_s": 60,
        "ray_actor_options": {"num_cpus": 0.1},
    }


def test_where_a_rank_takes_several_pods_each_of_them_has_an_ingress() -> None:
    options = ingress_deployment(parse(some_arguments(tensor=8, pipeline=2, replicas=3, ingresses=6)))
    assert options["autoscaling_config"] == {"min_replicas": 6, "max_replicas": 6}
    assert options["max_replicas_per_node"] == 1


@pytest.mark.parametrize(("device", "cpus"), [("cuda", 2), ("cpu", 1)])
def test_a_replica_holds_more_than_the_spare_cpu_of_a_pod_but_for_its_engine(device: str, cpus: int) -> None:
    config = llm_config(parse(some_arguments(device=device)))
    deployment = config["deployment_config"]
    assert isinstance(deployment, dict)
    assert deployment["ray_actor_options"] == {"num_cpus": cpus}


EXPERTS = {"data": 2, "expert": True}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"modelid": "x"}, "does not know the argument 'modelid'"),
        ({"redundant_experts": 1}, "does not know the argument 'redundant_experts'"),
        ({"device": "tpu"}, "device: input should be 'cuda' or 'cpu', not 'tpu'"),
        ({"model_id": "Tiny"}, "model_id: "),
        ({"model_path": "org/name"}, "model_path: must be an absolute path in the pod, not 'org/name'"),
        ({"model_path": "/weights/../etc"}, "must be an absolute path"),
        ({"model_path": "s3://bucket/model"}, "must be an absolute path"),
        ({"replicas": 0}, "replicas: input should be greater than or equal to 1, not 0"),
        ({"tensor": "2"}, "tensor: input should be a valid integer, not '2'"),
        ({"tensor": True}, "tensor: "),
        ({"expert": "yes"}, "expert: "),
        ({"expert": True}, "needs tensor times data greater than 1"),
        ({"expert": True, "pipeline": 2}, "needs tensor times data greater than 1"),
        ({"redundantExperts": 2, "data": 2}, "2 redundant experts need expert: true"),
        ({"allToAll": "deepep_v2", "data": 2}, "needs expert: true and data greater than 1"),
        ({"allToAll": "deepep_v2", "tensor": 2, "expert": True}, "needs expert: true and data greater"),
        ({"allToAll": "carrier_pigeon", **EXPERTS}, "allToAll: input should be 'allgather_reducescatter'"),
        ({"device": "cpu", "redundantExperts": 1, **EXPERTS}, "balanced on GPUs only"),
        ({"device": "cpu", "allToAll": "deepep_v2", **EXPERTS}, "works on GPUs only"),
        ({"device": "cpu", "pipeline": 2}, "pipeline 2 works on GPUs only"),
        ({"maxModelLen": 0}, "maxModelLen: "),
        ({"engineArgs": {"dtype": None}}, "engineArgs.dtype: "),
        ({"engineArgs": {"dtype": {"a": 1}}}, "engineArgs.dtype: "),
        ({"engineArgs": {"trust_remote_code": True}}, "'trust_remote_code', because it would run code"),
        ({"engineArgs": {"tensor_parallel_size": 2}}, "because other fields of the manifest set it"),
        ({"engineArgs": {"hf_overrides": "{}"}}, "outside the verified model"),
        ({"engineArgs": {"speculative_config": "{}"}}, "outside the verified model"),
        ({"engineArgs": {"api_key": "x"}}, "because other fields of the manifest set it"),
        ({"engineArgs": {"port": 1}}, "belongs to a server that is not started here"),
        ({"engineArgs": {"enable_log_requests": True}}, "would expose prompts"),
        ({"engineArgs": {"compilation_config": "{}"}}, "takes a list or a map"),
        ({"engineArgs": {"brand_new": 1}}, "not among the arguments that a manifest may set"),
        ({"adapters": [{"name": "legal", "path": "/adapters/legal"}]}, "and legal would be missing"),
        ({"adapters": [{"name": "legal"}]}, "the argument 'adapters.0"),
    ],
)
def test_what_cannot_be_served_is_refused_with_one_sentence(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ArgumentsRefused) as refused:
        parse(some_arguments(**changes))
    sentence = str(refused.value)
    assert words in sentence
    assert sentence.startswith("The application ")
    assert sentence.endswith(".")
    assert "\n" not in sentence


@pytest.mark.parametrize("name", ["model_id", "model_path", "device"])
def test_a_missing_argument_is_named(name: str) -> None:
    arguments = some_arguments()
    del arguments[name]
    with pytest.raises(ArgumentsRefused, match=f"needs the argument '{name}'"):
        parse(arguments)


def test_arguments_that_are_no_map_are_refused() -> None:
    with pytest.raises(ArgumentsRefused, match="refuses its arguments"):
        parse(["tiny-moe"])


def test_no_argument_is_both_tunable_and_refused() -> None:
    assert not TUNABLE & REFUSED.keys()
    assert all(objection_to(name) for name in REFUSED)
