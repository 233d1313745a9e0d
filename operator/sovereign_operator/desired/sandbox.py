# SPDX-License-Identifier: Apache-2.0
"""What every pod of ours is held by: Pod Security's `restricted` profile, and an environment without a way
out. Workers with RDMA and fetches to nodes are the exceptions, and have functions of their own.

KubeRay copies the Ray container's security context, environment and mounts into the init container that it
adds, so everything stands on the container and not on the pod alone.
"""

from __future__ import annotations

from typing import Final

from sovereign_operator.values import Manifest

USER: Final = 1000
HOME: Final = "/home/sovereign"
# May lock any amount of memory.
IPC_LOCK: Final = "IPC_LOCK"

# No library of the stack calls home, downloads a kernel, or looks for a newer version of anything. Ray hands
# only some of these on to its actors, so they are set on every container, head and workers alike.
OFFLINE: Final = {
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "DO_NOT_TRACK": "1",
    # vLLM asks whether FlashInfer could download, whatever FLASHINFER_NO_DOWNLOAD says.
    "FLASHINFER_CUBINS_REPOSITORY": "http://127.0.0.1:9/",
    "FLASHINFER_NO_DOWNLOAD": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_OFFLINE": "1",
    "LMCACHE_TRACK_USAGE": "false",
    "RAYLLM_ENABLE_REQUEST_PROMPT_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray 2.60 reports that reporting is off: to nobody.
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
# Where libraries write: below the home folder, which is an emptyDir.
WRITABLE: Final = {
    "HF_HOME": f"{HOME}/.cache/huggingface",
    "HOME": HOME,
    "TORCHINDUCTOR_CACHE_DIR": f"{HOME}/.cache/torchinductor",
    "TRITON_CACHE_DIR": f"{HOME}/.cache/triton",
    "VLLM_CACHE_ROOT": f"{HOME}/.cache/vllm",
    "VLLM_CONFIG_ROOT": f"{HOME}/.config/vllm",
    "XDG_CACHE_HOME": f"{HOME}/.cache",
    "XDG_CONFIG_HOME": f"{HOME}/.config",
    "XDG_DATA_HOME": f"{HOME}/.local/share",
}
# On CPUs: GiB of cache for keys and values (vLLM would take half of the node), and no pinning to cores that
# other pods use.
CPU_PROFILE: Final = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Ray starts its workers at nice 15; beside other work on the same cores they starve until they time out.
    "RAY_worker_niceness": "0",
}
# On GPUs: vLLM 0.32 prefers these and compiles them with nvcc while the model starts, without asking whether
# there is one. A sealed image, pinned by digest and read-only, has no CUDA toolkit, and the engine would end
# there. The kernels that came compiled, and Triton's, are slower at sampling and at FP8 in blocks.
CUDA_PROFILE: Final = {
    "VLLM_USE_DEEP_GEMM": "0",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}
# Where the NVIDIA runtime is a node's default, an image that says `all`, as CUDA's own do, shows every
# accelerator of the node to a pod that asked for none.
NO_ACCELERATORS: Final = {"NVIDIA_VISIBLE_DEVICES": "void"}


def pod_security() -> Manifest:
    """The pod's security context: what `restricted` asks for, and a group that may write the volumes."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def restricted() -> Manifest:
    """A container's security context under `restricted`, with nothing writable but its mounts."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def restricted_but_for_rdma() -> Manifest:
    """The same and one capability: adapters pin memory. It is outside of `restricted` and of `baseline`.

    No process of ours is root, so what the kernel grants is the runtime's memlock limit all the same: without
    ambient capabilities, which Kubernetes does not set, an added one does not reach them.
    """
    return restricted() | {"capabilities": {"add": [IPC_LOCK], "drop": ["ALL"]}}


def root_pod_security() -> Manifest:
    """Of a pod that writes a node's folder, which belongs to root: nobody else may, so there is no group."""
    return {"runAsUser": 0, "runAsGroup": 0, "seccompProfile": {"type": "RuntimeDefault"}}


def root_restricted() -> Manifest:
    """Root without any capability: it is the owner of its folder and nothing else."""
    return restricted() | {"runAsNonRoot": False, "runAsUser": 0, "runAsGroup": 0}


def serving_environment(cpu: bool, *, head: bool) -> list[Manifest]:
    """The environment of the Ray containers. POD_IP comes first: `$(POD_IP)` sees earlier entries only.

    A worker's says nothing of visible devices: it would win over what the device plugin says.
    """
    profile = CPU_PROFILE if cpu else CUDA_PROFILE | (NO_ACCELERATORS if head else {})
    values = OFFLINE | WRITABLE | profile | {"USER": "sovereign", "VLLM_HOST_IP": "$(POD_IP)"}
    address = {"name": "POD_IP", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}}
    return [address, *({"name": name, "value": value} for name, value in sorted(values.items()))]


def offline_environment() -> list[Manifest]:
    """The environment of the data plane's containers inside the seal."""
    values = OFFLINE | {"HOME": HOME}
    return [{"name": name, "value": value} for name, value in sorted(values.items())]


def home_environment() -> list[Manifest]:
    """The environment of a container that has to reach the hub."""
    values = {
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HOME": HOME,
    }
    return [{"name": name, "value": value} for name, value in sorted(values.items())]
