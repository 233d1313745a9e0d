# SPDX-License-Identifier: Apache-2.0
"""What every replica does before its engine starts: it makes sure that nothing will be fetched.

`build` runs on the head and sees only the head's environment; the weights are loaded in the workers.
"""

from __future__ import annotations

import os

from ray.llm._internal.common.callbacks.base import CallbackBase

from sovereign_serving import offline


class StartOffline(CallbackBase):  # type: ignore[misc]
    """Ray Serve LLM's hook before a replica loads its model; an error here fails the deployment."""

    async def on_before_node_init(self) -> None:
        offline.require(os.environ, device=self.kwargs["device"])
        # Ray would now start a task on each node that looks for something to download. The weights are in
        # place and verified; the task would import vLLM for nothing, a gigabyte and many seconds per rank.
        self.ctx.run_init_node = False
