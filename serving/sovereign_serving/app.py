# SPDX-License-Identifier: Apache-2.0
"""The Ray Serve application: `import_path: sovereign_serving.app:build` in a RayService's `serveConfigV2`.

Runs on the head while the application is deployed. What it decides is in `arguments`, which knows nothing
of Ray; Ray is imported here, and only once the arguments and the environment are in order.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sovereign_serving import offline
from sovereign_serving.arguments import Arguments, ingress_deployment, llm_config, parse

if TYPE_CHECKING:
    from ray.serve import Application


def build(args: dict[str, object]) -> Application:
    """The application for one model; raises ArgumentsRefused or NotOffline before anything is started."""
    arguments = parse(args)
    offline.require(os.environ, device=arguments.device)
    return _application(arguments)


def _application(arguments: Arguments) -> Application:
    from ray.serve.llm import LLMConfig, build_dp_openai_app, build_openai_app

    config = LLMConfig(**llm_config(arguments))
    ingress = {"ingress_deployment_config": ingress_deployment(arguments)}
    if arguments.data > 1:
        return build_dp_openai_app({"llm_config": config, **ingress})
    # Ignores data_parallel_size: with data > 1 it would start single ranks that answer as if all were well.
    return build_openai_app({"llm_configs": [config], **ingress})
