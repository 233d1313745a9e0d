# SPDX-License-Identifier: Apache-2.0
"""How a model is served: `spec.serving` of a SovereignModel, the part that becomes the RayService.

Rules between fields stand in `crd_rules.py`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field, StringConstraints

from sovereign_operator.api_fields import ApiModel, Quantity, ShortText

# Refused in `engineArgs`: what other fields of the manifest set, what loads code, what reads or writes
# outside the verified model, what opens a port. Names of vLLM 0.32; the serving image refuses these and some
# more.
RESERVED_ENGINE_ARGS: Final = (
    "all2all_backend",
    "allowed_local_media_path",
    "allowed_media_domains",
    "api_key",
    "chat_template",
    "code_revision",
    "collect_detailed_traces",
    "default_mm_loras",
    "disable_log_stats",
    "distributed_executor_backend",
    "download_dir",
    "enable_elastic_ep",
    "enable_eplb",
    "enable_expert_parallel",
    "enable_log_requests",
    "enable_lora",
    "eplb_config",
    "generation_config",
    "hf_config_path",
    "hf_overrides",
    "hf_token",
    "host",
    "io_processor_plugin",
    "kv_events_config",
    "kv_transfer_config",
    "load_format",
    "log_config_file",
    "logging_config",
    "logits_processors",
    "lora_modules",
    "master_addr",
    "master_port",
    "max_model_len",
    "middleware",
    "mm_encoder_fp8_scale_path",
    "mm_encoder_fp8_scale_save_margin",
    "mm_encoder_fp8_scale_save_path",
    "model",
    "model_class_overrides",
    "model_loader_extra_config",
    "model_weights",
    "nnodes",
    "node_rank",
    "num_redundant_experts",
    "otlp_traces_endpoint",
    "pipeline_parallel_size",
    "port",
    "profiler_config",
    "ray_workers_use_nsight",
    "reasoning_parser_plugin",
    "revision",
    "root_path",
    "scheduler_cls",
    "served_model_name",
    "spec_method",
    "spec_model",
    "spec_tokens",
    "speculative_config",
    "tensor_parallel_size",
    "tokenizer",
    "tokenizer_revision",
    "tool_parser_plugin",
    "tool_server",
    "trust_remote_code",
    "uds",
    "weight_transfer_config",
    "worker_cls",
    "worker_extension_cls",
)
# And everything that begins with this.
RESERVED_ENGINE_ARG_PREFIX: Final = "data_parallel"


class Device(StrEnum):
    CUDA = "cuda"
    CPU = "cpu"


class AllToAll(StrEnum):
    """The kernels of vLLM 0.32 that a user may select; the deprecated and the internal ones are left out."""

    ALLGATHER_REDUCESCATTER = "allgather_reducescatter"
    DEEPEP_HIGH_THROUGHPUT = "deepep_high_throughput"
    DEEPEP_LOW_LATENCY = "deepep_low_latency"
    DEEPEP_V2 = "deepep_v2"
    FLASHINFER_NVLINK_ONE_SIDED = "flashinfer_nvlink_one_sided"
    FLASHINFER_NVLINK_TWO_SIDED = "flashinfer_nvlink_two_sided"
    MORI_HIGH_THROUGHPUT = "mori_high_throughput"
    MORI_LOW_LATENCY = "mori_low_latency"
    NIXL_EP = "nixl_ep"


class Parallelism(ApiModel):
    """How one replica is spread over accelerators: it takes tensor x pipeline x data of them."""

    tensor: int = Field(
        default=1,
        ge=1,
        le=64,
        description=(
            "Tensor parallelism: accelerators that share every layer. It must divide the model's attention "
            "heads. Unit: accelerators. Default: 1. Example: 4"
        ),
    )
    pipeline: int = Field(
        default=1,
        ge=1,
        le=64,
        description=(
            "Pipeline parallelism: stages that hold consecutive layers, for models that do not fit one "
            "node. Unit: stages. Default: 1. Example: 2"
        ),
    )
    data: int = Field(
        default=1,
        ge=1,
        le=256,
        description=(
            "Data parallelism inside one replica: ranks that hold the attention layers each and share the "
            "experts. Only for mixture-of-experts models; a dense one takes replicas. Unit: ranks. "
            "Default: 1. Example: 8"
        ),
    )
    expert: bool = Field(
        default=False,
        description=(
            "Expert parallelism: whole experts are spread over the tensor x data accelerators instead of "
            "slices of each. Only for mixture-of-experts models. Default: false. Example: true"
        ),
    )
    redundant_experts: int = Field(
        default=0,
        ge=0,
        le=1024,
        description=(
            "Extra copies of busy experts for load balancing; needs expert. Unit: experts per model. "
            "Default: 0 (off). Example: 16"
        ),
    )
    all_to_all: AllToAll | None = Field(
        default=None,
        description=(
            "Kernel that exchanges tokens between experts; needs expert. Our serving image runs "
            "allgather_reducescatter only: the others need an image of your own that carries their library. "
            "Default: the engine's choice. Example: allgather_reducescatter"
        ),
    )


class Adapter(ApiModel):
    """A LoRA adapter that is served beside the base model, under its own model name."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=63)] = Field(
        description="Name that clients ask for. Example: support-tickets"
    )
    reference: Annotated[str, StringConstraints(max_length=384)] = Field(
        description="Adapter artifact in the in-cluster registry, pinned by digest. "
        "Example: models/org/adapter@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    )


class WorkerResources(ApiModel):
    """CPU and memory of one worker pod; accelerators follow from the placement."""

    cpu: Quantity | None = Field(
        default=None,
        description=(
            "CPU request of a worker pod. Unit: cores. Default: 4 per accelerator (500m with device cpu). "
            "Example: '16'"
        ),
    )
    memory: Quantity | None = Field(
        default=None,
        description=(
            "Memory request and limit of a worker pod. Unit: bytes. Default: from the accelerators of the "
            "pod, or with device cpu from the size of the weights. Example: 64Gi"
        ),
    )


class Rdma(ApiModel):
    """A fabric that adapters use past the kernel, for traffic between the workers."""

    resource: Annotated[str, StringConstraints(min_length=1, max_length=253)] = Field(
        description=(
            "Extended resource of the RDMA device plugin that stands for one device, as nodes report it. "
            "Example: rdma/hca_shared_devices_a"
        )
    )
    per_worker: int = Field(
        default=1,
        ge=1,
        le=64,
        description=(
            "Devices that each worker pod takes; a shared device counts once. Unit: devices. Default: 1. "
            "Example: 8"
        ),
    )


class ServingSpec(ApiModel):
    """How the model is served."""

    image: Annotated[str, StringConstraints(min_length=1, max_length=512)] = Field(
        description=(
            "Serving image, pinned by digest unless the operator allows tags. Example: "
            "registry.example/sovereign-serving@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
        )
    )
    device: Device = Field(
        default=Device.CUDA,
        description=(
            "What the engine computes on. cpu is for trials and tests with tiny models. Default: cuda. "
            "Example: cpu"
        ),
    )
    replicas: int = Field(
        default=1,
        ge=1,
        le=64,
        description=(
            "Copies of the model, each with its own tensor x pipeline x data accelerators. Unit: replicas. "
            "Default: 1. Example: 2"
        ),
    )
    parallelism: Parallelism | None = Field(
        default=None,
        description=(
            "How one replica is spread over accelerators. Default: the operator chooses from the model's "
            "facts and the accelerators' memory, and says what and why in status.placement. Example: "
            "{tensor: 4, expert: true}"
        ),
    )
    max_model_len: int | None = Field(
        default=None,
        ge=1,
        le=16777216,
        description=(
            "Longest context, prompt and answer together. Unit: tokens. Default: what the model was made "
            "for. Example: 131072"
        ),
    )
    engine_args: dict[str, ShortText] = Field(
        default_factory=dict,
        max_length=64,
        description=(
            "Further vLLM engine arguments by their Python names; each value is a string that holds a YAML "
            "scalar. What the operator sets itself, and what could reach outside, is refused. On Blackwell "
            "set attention_backend to FLASH_ATTN, or TRITON_MLA for latent attention: the engine would "
            "choose one that is compiled at the start, and our image has no compiler for it. Default: none. "
            "Example: {gpu_memory_utilization: '0.92', enforce_eager: 'true'}"
        ),
    )
    adapters: list[Adapter] = Field(
        default_factory=list,
        max_length=16,
        description="LoRA adapters served beside the model. Default: none.",
    )
    resources: WorkerResources = Field(
        default_factory=WorkerResources,
        description=(
            "CPU and memory of each worker pod. Default: derived from the placement. Example: {cpu: '16', "
            "memory: 256Gi}"
        ),
    )
    rdma: Rdma | None = Field(
        default=None,
        description=(
            "RDMA for the worker pods: devices, and the capability IPC_LOCK. No network policy sees this "
            "traffic and no probe tries it, which EgressSealed says (RdmaNotCovered); the namespace must "
            "allow privileged pod security. Default: none. Example: {resource: rdma/hca_shared_devices_a}"
        ),
    )
