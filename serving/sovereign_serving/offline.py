# SPDX-License-Identifier: Apache-2.0
"""The environment that keeps every library in a model pod from calling out, as data and as a check; on GPUs
also from compiling what this image cannot compile.

The operator puts the block on the head's and on the workers' containers, because Ray hands only some
variables on to its actors. Network policies deny the calls anyway; with the block no library waits for
them, and none is made from a pod whose policy is not enforced. The application and every replica look for
it before they load anything, so that a forgotten variable is a sentence and not a time-out.
"""

from __future__ import annotations

from collections.abc import Mapping

# Name -> the only value that counts.
FIXED: dict[str, str] = {
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

# Where libraries write: below the home folder, which is an emptyDir. Any absolute path will do.
PATHS: dict[str, str] = {
    "HF_HOME": "/home/sovereign/.cache/huggingface",
    "HOME": "/home/sovereign",
    "TORCHINDUCTOR_CACHE_DIR": "/home/sovereign/.cache/torchinductor",
    "TRITON_CACHE_DIR": "/home/sovereign/.cache/triton",
    "VLLM_CACHE_ROOT": "/home/sovereign/.cache/vllm",
    "VLLM_CONFIG_ROOT": "/home/sovereign/.config/vllm",
    "XDG_CACHE_HOME": "/home/sovereign/.cache",
    "XDG_CONFIG_HOME": "/home/sovereign/.config",
    "XDG_DATA_HOME": "/home/sovereign/.local/share",
}

# The pod's own address: without it vLLM asks a public resolver which interface leads outside.
PRESENT = ("VLLM_HOST_IP",)

# On CPUs: GiB of key-value cache (vLLM would take half of the node), and no pinning to cores that other
# pods use.
CPU: dict[str, str] = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}

# On GPUs: what vLLM 0.32 prefers and compiles with nvcc while the model starts, without asking whether there
# is one. The image is pinned by digest and read-only and has no CUDA toolkit, so the engine would end there.
# The kernels that came compiled, and Triton's, take their place: sampling and FP8 in blocks are slower.
CUDA: dict[str, str] = {
    "VLLM_USE_DEEP_GEMM": "0",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}


class NotOffline(RuntimeError):
    """A variable of the block is missing, or has a value that lets a library call out or compile."""


def require(environment: Mapping[str, str], *, device: str) -> None:
    """Raises NotOffline with one sentence that names every variable at fault."""
    faults = [
        *(
            f"{name} is {_shown(environment.get(name))} instead of {value!r}"
            for name, value in (FIXED | (CUDA if device == "cuda" else {})).items()
            if environment.get(name) != value
        ),
        *(
            f"{name} is {_shown(environment.get(name))} instead of an absolute path"
            for name in PATHS
            if not environment.get(name, "").startswith("/")
        ),
        *(
            f"{name} is {_shown(environment.get(name))}"
            for name in (*PRESENT, *(CPU if device == "cpu" else ()))
            if not environment.get(name)
        ),
    ]
    if faults:
        raise NotOffline(
            "The offline environment of this pod is incomplete: "
            + ", ".join(faults)
            + ". The operator sets these variables on the head and on the workers; start the pods through it."
        )


def _shown(value: str | None) -> str:
    if value is None:
        return "not set"
    return repr(value) if value else "empty"
