# SPDX-License-Identifier: Apache-2.0
"""Not for production: lets vLLM run MoE expert parallelism on CPUs, for tests and the demo.

vLLM 0.32 accepts `enable_expert_parallel` on a CPU and then reads past the local experts, because its CPU
path lacks three things. This plugin adds them, and nothing else, in every process that vLLM starts (it is
found through the entry point group `vllm.general_plugins`):

1. the CPU kernel for unquantized experts ignores `expert_map`, which says where an expert lives;
2. the CPU communicator has no gather and no reduce-scatter for ranks with different numbers of tokens,
   which is how data-parallel ranks exchange tokens with the experts;
3. on CPUs with AMX, the tile registers are used without asking the kernel for them first.

Correctness only: everything is padded, copied and reduced in float32. Production serves on GPUs, where vLLM
brings all of it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

_INSTALLED = "_sovereign_cpu_expert_parallel"


class Ranks(Protocol):
    """What the two collectives need of `CpuCommunicator`."""

    world_size: int
    rank_in_group: int

    def all_gather(self, input_: torch.Tensor, dim: int) -> torch.Tensor: ...

    def all_reduce(self, input_: torch.Tensor) -> torch.Tensor: ...


def register() -> None:
    """Patches vLLM in this process; without effect on other platforms and the second time."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

    allow_amx_tiles()
    if not hasattr(CPUUnquantizedExperts, _INSTALLED):
        CPUUnquantizedExperts.apply = honour_expert_map(CPUUnquantizedExperts.apply)
        setattr(CPUUnquantizedExperts, _INSTALLED, True)
    if not hasattr(CpuCommunicator, _INSTALLED):
        CpuCommunicator.all_gatherv = all_gatherv
        CpuCommunicator.reduce_scatterv = reduce_scatterv
        setattr(CpuCommunicator, _INSTALLED, True)


def allow_amx_tiles() -> None:
    """Asks Linux for the AMX tile registers, which it gives to no process that has not asked.

    vLLM picks its AMX kernel by what the CPU has, and only some of its code paths ask first: a short prompt
    as the first request ends the worker with SIGILL.
    """
    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()


def local_experts(
    topk_ids: torch.Tensor, topk_weights: torch.Tensor, expert_map: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Global expert ids [tokens, k] -> local ids; an expert of another rank becomes id 0 with weight 0.

    `expert_map` [global experts] holds -1 for experts that live elsewhere. Those contribute nothing here, and
    the sum over the ranks is the whole layer.
    """
    local = expert_map[topk_ids.long()]
    elsewhere = local < 0
    return (
        local.masked_fill(elsewhere, 0).to(topk_ids.dtype),
        topk_weights.masked_fill(elsewhere, 0),
    )


def honour_expert_map(apply: Callable[..., None]) -> Callable[..., None]:
    """Wraps `CPUUnquantizedExperts.apply` so that it sees only experts of its own rank."""
    signature = inspect.signature(apply)

    @functools.wraps(apply)
    def apply_local(*args: object, **kwargs: object) -> None:
        call = signature.bind(*args, **kwargs)
        values = call.arguments
        if values["expert_map"] is None:
            return apply(*args, **kwargs)
        if values["apply_router_weight_on_input"]:
            # The weights are in the hidden states already: a weight of 0 would not silence an expert here.
            raise NotImplementedError("expert parallelism on a CPU does not do router weights on the input")
        values["topk_ids"], values["topk_weights"] = local_experts(
            values["topk_ids"], values["topk_weights"], values["expert_map"]
        )
        values["expert_map"] = None
        return apply(*call.args, **call.kwargs)

    return apply_local


def all_gatherv(
    self: Ranks,
    input_: torch.Tensor | list[torch.Tensor],
    dim: int = 0,
    sizes: Sequence[int] | None = None,
) -> torch.Tensor | list[torch.Tensor]:
    """Rows of every rank, in rank order; `sizes` are the rows per rank (None: the same everywhere)."""
    if dim != 0:
        raise NotImplementedError("all_gatherv gathers rows (dim 0) only")
    if not isinstance(input_, torch.Tensor):
        return [all_gatherv(self, tensor, dim, sizes) for tensor in input_]
    rows = input_.contiguous()
    if sizes is None or len(set(sizes)) == 1:
        return self.all_gather(rows, 0)
    longest = max(sizes)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: rows.shape[0]] = rows
    parts = self.all_gather(padded, 0).split(longest)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def reduce_scatterv(
    self: Ranks, input_: torch.Tensor, dim: int = -1, sizes: Sequence[int] | None = None
) -> torch.Tensor:
    """The sum over all ranks, of which each keeps its own rows; `sizes` as in `all_gatherv`."""
    rows = input_.movedim(dim, 0)
    if sizes is None:
        sizes = [rows.shape[0] // self.world_size] * self.world_size
    if sum(sizes) != rows.shape[0]:
        raise ValueError(f"{rows.shape[0]} rows cannot be scattered as {sizes}")
    # all_reduce works in place and the caller keeps its tensor: a copy, in float32 so that the order of the
    # ranks hardly matters.
    total = self.all_reduce(rows.to(torch.float32, copy=True).contiguous())
    start = sum(sizes[: self.rank_in_group])
    own = total[start : start + sizes[self.rank_in_group]].to(input_.dtype)
    return own.movedim(0, dim).contiguous()
