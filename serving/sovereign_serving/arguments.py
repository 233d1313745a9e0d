# SPDX-License-Identifier: Apache-2.0
"""The operator's arguments for one model: read, judged, and turned into Ray Serve LLM's configuration.

Pure: nothing of Ray or vLLM is imported, nothing is read from the machine. What is unknown, reserved or
impossible is refused here with one sentence, because an engine that starts with half of what was asked for
is found out by its users.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)

from sovereign_serving.engine_arguments import objection_to

Size = Annotated[StrictInt, Field(ge=1)]
Scalar = StrictBool | StrictInt | StrictFloat | StrictStr

# vLLM's ways to exchange tokens between expert-parallel ranks that a manifest may name.
AllToAll = Literal[
    "allgather_reducescatter",
    "deepep_high_throughput",
    "deepep_low_latency",
    "deepep_v2",
    "flashinfer_nvlink_one_sided",
    "flashinfer_nvlink_two_sided",
    "mori_high_throughput",
    "mori_low_latency",
    "nixl_ep",
]

# Seconds. A starved node answers late; a gang of data-parallel ranks that is restarted for it loses all of
# its requests and minutes of loading.
HEALTH_CHECK_PERIOD = 10
HEALTH_CHECK_TIMEOUT = 60
# CPUs in Ray's book-keeping, where a pod has those of its ranks and a spare one. On GPUs a replica holds two,
# because Ray would pack one more replica into the spare one of another pod. The ingress must fit into it, and
# Ray's default of one would leave it pending.
REPLICA_CPUS = {"cuda": 2, "cpu": 1}
INGRESS_CPUS = 0.1


class ArgumentsRefused(ValueError):
    """The application's arguments cannot be served; the message is one sentence for the user."""


class Adapter(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: StrictStr
    path: StrictStr


class Arguments(BaseModel):
    """What `serveConfigV2` passes to `build`: one model, how it is cut up, and how it is tuned."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=False)

    model_id: Annotated[StrictStr, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
    model_path: StrictStr
    device: Literal["cuda", "cpu"]
    replicas: Size = 1
    tensor: Size = 1
    pipeline: Size = 1
    data: Size = 1
    expert: StrictBool = False
    redundant_experts: Annotated[StrictInt, Field(ge=0, alias="redundantExperts")] = 0
    all_to_all: Annotated[AllToAll | None, Field(alias="allToAll")] = None
    # Worker pods, where one rank takes several: all but its first have no replica.
    ingresses: Size | None = None
    max_model_len: Annotated[Size | None, Field(alias="maxModelLen")] = None
    engine_args: Annotated[dict[StrictStr, Scalar], Field(alias="engineArgs", default_factory=dict)]
    adapters: tuple[Adapter, ...] = ()

    @field_validator("model_path")
    @classmethod
    def _the_path_is_a_folder_in_the_pod(cls, path: str) -> str:
        # Anything else is a model name to Ray and to vLLM, and they would ask a hub for it.
        if not PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ValueError(f"must be an absolute path in the pod, not {path!r}")
        return path

    @field_validator("engine_args")
    @classmethod
    def _engine_arguments_only_tune(cls, values: dict[str, Scalar]) -> dict[str, Scalar]:
        for name in sorted(values):
            if objection := objection_to(name):
                raise ValueError(f"may not contain {name!r}, because {objection}")
        return values

    @model_validator(mode="after")
    def _the_parallelism_is_possible(self) -> Self:
        ranks = self.tensor * self.data
        if self.expert and ranks == 1:
            raise ValueError("expert parallelism needs tensor times data greater than 1, and both are 1")
        if self.redundant_experts and not self.expert:
            raise ValueError(f"{self.redundant_experts} redundant experts need expert: true")
        if self.all_to_all and not (self.expert and self.data > 1):
            raise ValueError(f"allToAll {self.all_to_all!r} needs expert: true and data greater than 1")
        if self.device == "cpu":
            if self.redundant_experts:
                raise ValueError("redundant experts are balanced on GPUs only; the device is cpu")
            if self.all_to_all not in (None, "allgather_reducescatter"):
                raise ValueError(f"allToAll {self.all_to_all!r} works on GPUs only; the device is cpu")
            if self.pipeline > 1:
                raise ValueError(f"pipeline {self.pipeline} works on GPUs only; the device is cpu")
        if self.adapters:
            # Ray Serve LLM takes adapters from cloud storage only, and there is none in a sealed cluster.
            names = ", ".join(adapter.name for adapter in self.adapters)
            raise ValueError(f"adapters cannot be served yet, and {names} would be missing without a word")
        return self


def parse(values: object) -> Arguments:
    """Arguments from the plain data in `serveConfigV2`; raises ArgumentsRefused with one sentence."""
    try:
        return Arguments.model_validate(values)
    except ValidationError as error:
        raise ArgumentsRefused(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    """The first fault only, as one sentence: users repair faults one after the other anyway."""
    fault = error.errors(include_url=False)[0]
    # A union names the branch it tried after the field; of that the user knows nothing.
    where = ".".join(str(part) for part in fault["loc"][:2] if not str(part).startswith("function"))
    match fault["type"]:
        case "extra_forbidden":
            return f"The application does not know the argument {where!r}."
        case "missing":
            return f"The application needs the argument {where!r}."
        case "value_error":
            what = str(fault["ctx"]["error"])
        case _:
            what = f"{fault['msg'][0].lower()}{fault['msg'][1:]}, not {fault['input']!r}"
    return f"The application refuses {where + ': ' if where else 'its arguments: '}{what}."


def llm_config(arguments: Arguments) -> dict[str, object]:
    """The fields of Ray Serve LLM's LLMConfig for these arguments."""
    return {
        "model_loading_config": {"model_id": arguments.model_id, "model_source": arguments.model_path},
        "engine_kwargs": engine_kwargs(arguments),
        "placement_group_config": _placement(arguments),
        "deployment_config": {
            # A replica is a group of data-parallel ranks: Ray multiplies by `data` itself.
            "num_replicas": arguments.replicas,
            "ray_actor_options": {"num_cpus": REPLICA_CPUS[arguments.device]},
            "health_check_period_s": HEALTH_CHECK_PERIOD,
            "health_check_timeout_s": HEALTH_CHECK_TIMEOUT,
        },
        "callback_config": {
            "callback_class": "sovereign_serving.replica:StartOffline",
            "callback_kwargs": {"device": arguments.device},
        },
    }


def engine_kwargs(arguments: Arguments) -> dict[str, object]:
    """vLLM's engine arguments; sizes of 1 are written too, so that no default of vLLM decides them."""
    kwargs: dict[str, object] = {
        **arguments.engine_args,
        "data_parallel_size": arguments.data,
        "enable_expert_parallel": arguments.expert,
        # Never `auto`: that falls back to formats that run code when they are read.
        "load_format": "safetensors",
        "pipeline_parallel_size": arguments.pipeline,
        "tensor_parallel_size": arguments.tensor,
        "trust_remote_code": False,
    }
    if arguments.max_model_len:
        kwargs["max_model_len"] = arguments.max_model_len
    if arguments.all_to_all:
        kwargs["all2all_backend"] = arguments.all_to_all
    if arguments.redundant_experts:
        kwargs["enable_eplb"] = True
        kwargs["eplb_config"] = {"num_redundant_experts": arguments.redundant_experts}
    return dict(sorted(kwargs.items()))


def _placement(arguments: Arguments) -> dict[str, object]:
    """What one engine process takes from its Ray node; Ray adds the replica's own CPUs to the first."""
    if arguments.device == "cuda":
        # PACK: a rank may need more GPUs than one node has.
        return {"bundle_per_worker": {"GPU": 1}, "strategy": "PACK"}
    # Without accelerators the engine's processes are children of the replica: they share its pod, or the
    # book-keeping is wrong. With data > 1 Ray packs the whole gang and ignores the strategy.
    return {"bundle_per_worker": {"CPU": 1}, "strategy": "STRICT_PACK"}


def ingress_deployment(arguments: Arguments) -> dict[str, object]:
    """Options of the deployment that speaks HTTP: one replica for each replica of the model.

    Ray starts a proxy only where a replica of any kind is, and a pod is ready when its own proxy answers. So
    where a rank takes several pods, each of them gets an ingress.

    Both bounds are given as autoscaling bounds, because one of Ray's two builders keeps its autoscaling
    default beside `num_replicas` and then refuses the pair.
    """
    count = arguments.ingresses or arguments.replicas
    options: dict[str, object] = {
        "autoscaling_config": {"min_replicas": count, "max_replicas": count},
        "health_check_timeout_s": HEALTH_CHECK_TIMEOUT,
        "ray_actor_options": {"num_cpus": INGRESS_CPUS},
    }
    return options | ({"max_replicas_per_node": 1} if arguments.ingresses else {})
