# SPDX-License-Identifier: Apache-2.0
"""A pod without the whole offline environment does not start its model."""

import pytest

from sovereign_serving import app, offline


def the_block(device: str = "cuda") -> dict[str, str]:
    block = {**offline.FIXED, **offline.PATHS, "VLLM_HOST_IP": "10.244.0.7"}
    return {**block, **(offline.CPU if device == "cpu" else offline.CUDA)}


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_whole_block_is_enough(device: str) -> None:
    offline.require(the_block(device), device=device)


@pytest.mark.parametrize(
    ("device", "name"), [(device, name) for device in ("cuda", "cpu") for name in sorted(the_block(device))]
)
def test_one_forgotten_variable_is_named(device: str, name: str) -> None:
    environment = the_block(device)
    del environment[name]
    with pytest.raises(offline.NotOffline, match=rf"{name} is not set") as refused:
        offline.require(environment, device=device)
    assert str(refused.value).count(" is ") == 2  # the environment is incomplete; this one is not set


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("HF_HUB_OFFLINE", "0", "HF_HUB_OFFLINE is '0' instead of '1'"),
        ("DO_NOT_TRACK", "", "DO_NOT_TRACK is empty instead of '1'"),
        ("HOME", "sovereign", "HOME is 'sovereign' instead of an absolute path"),
        ("VLLM_HOST_IP", "", "VLLM_HOST_IP is empty"),
        ("VLLM_USE_DEEP_GEMM", "1", "VLLM_USE_DEEP_GEMM is '1' instead of '0'"),
        ("VLLM_USE_FLASHINFER_SAMPLER", "1", "VLLM_USE_FLASHINFER_SAMPLER is '1' instead of '0'"),
    ],
)
def test_a_variable_with_another_value_does_not_count(name: str, value: str, words: str) -> None:
    with pytest.raises(offline.NotOffline, match=words):
        offline.require(the_block() | {name: value}, device="cuda")


@pytest.mark.parametrize(
    ("device", "other", "name"),
    [("cuda", "cpu", "VLLM_CPU_KVCACHE_SPACE"), ("cpu", "cuda", "VLLM_USE_FLASHINFER_SAMPLER")],
)
def test_a_device_does_not_need_the_variables_of_the_other(device: str, other: str, name: str) -> None:
    offline.require(the_block(device), device=device)
    with pytest.raises(offline.NotOffline, match=f"{name} is not set"):
        offline.require(the_block(device), device=other)


def test_the_application_is_not_built_on_a_head_without_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in the_block().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE")
    with pytest.raises(offline.NotOffline, match="TRANSFORMERS_OFFLINE is not set"):
        app.build({"model_id": "tiny-moe", "model_path": "/weights", "device": "cuda"})
