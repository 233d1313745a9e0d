# SPDX-License-Identifier: Apache-2.0
"""What every replica does before its engine starts: it makes sure that nothing will be fetched.

`build` runs on the head and sees only the head's environment; the weights are loaded in the workers.
"""

from __future__ import annotations

import os
from pathlib import Path

from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.llm._internal.serve.core.server import llm_server

from sovereign_serving import model_classes, offline


class StartOffline(CallbackBase):  # type: ignore[misc]
    """Ray Serve LLM's hook before a replica loads its model; an error here fails the deployment."""

    async def on_before_node_init(self) -> None:
        offline.require(os.environ, device=self.kwargs["device"])
        # Ray would now start a task on each node that looks for something to download. The weights are in
        # place and verified; the task would import vLLM for nothing, a gigabyte and many seconds per rank.
        self.ctx.run_init_node = False
        # Usage reports are switched off, but the actor that gathers them would be started all the same.
        llm_server.push_telemetry_report_for_all_models = _no_report
        model_classes.hand_over(model_classes.IN_THE_IMAGE, Path(os.environ["VLLM_CACHE_ROOT"]))


def _no_report(*, all_models: object) -> None:
    """Takes the place of the collector."""
