# SPDX-License-Identifier: Apache-2.0
"""What holds only beside the real vLLM and Ray: their arguments, their hooks, their short prompts."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from dev import serving_env
from sovereign_serving import offline
from sovereign_serving.engine_arguments import REFUSED, TUNABLE
from tests.serving.conftest import arguments_for, single_rank

pytestmark = [pytest.mark.serving, pytest.mark.timeout(900)]

INSIDE = """
import asyncio, dataclasses, json, os
from vllm import envs
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import FrontendArgs
from ray.llm._internal.serve.core.server import llm_server
from sovereign_serving.offline import NotOffline
from sovereign_serving.replica import StartOffline

def refusal():
    try:
        asyncio.run(StartOffline(None, device="cpu").on_before_node_init())
    except NotOffline as error:
        return str(error)

collector = llm_server.push_telemetry_report_for_all_models
complete = refusal()
collected = llm_server.push_telemetry_report_for_all_models is collector
del os.environ["HF_HUB_OFFLINE"]
fields = [field.name for kind in (AsyncEngineArgs, FrontendArgs) for field in dataclasses.fields(kind)]
said = {"complete": complete, "incomplete": refusal(), "collected": collected}
print(json.dumps({**said, "fields": fields, "variables": sorted(envs.environment_variables)}))
"""


@pytest.fixture(scope="module")
def inside(serving_python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    home = tmp_path_factory.mktemp("home")
    done = subprocess.run(
        [str(serving_python), "-c", INSIDE],
        env=serving_env.variables(home),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_every_argument_of_the_engine_has_been_judged(inside: dict[str, object]) -> None:
    fields = inside["fields"]
    assert isinstance(fields, list)
    assert set(fields) - TUNABLE - REFUSED.keys() == set()
    # num_redundant_experts was an argument of older versions; it is refused for those who remember it.
    assert (TUNABLE | REFUSED.keys()) - set(fields) == {"num_redundant_experts"}


def test_every_variable_that_is_vllms_by_its_name_is_one_that_it_reads(inside: dict[str, object]) -> None:
    variables = inside["variables"]
    assert isinstance(variables, list)
    block = {*offline.FIXED, *offline.PATHS, *offline.PRESENT, *offline.CPU, *offline.CUDA}
    assert {name for name in block if name.startswith("VLLM_")} - set(variables) == set()


def test_a_replica_looks_for_the_offline_environment_itself(inside: dict[str, object]) -> None:
    assert inside["complete"] is None
    assert "HF_HUB_OFFLINE is not set" in str(inside["incomplete"])


def test_a_replica_gathers_no_usage_report(inside: dict[str, object]) -> None:
    assert inside["collected"] is False


def test_a_short_first_prompt_in_bfloat16_is_survived(
    serving_python: Path, model: Path, tmp_path: Path
) -> None:
    # On CPUs with AMX, vLLM's kernel for experts used tile registers that nobody had asked the kernel for.
    arguments = arguments_for(model, engineArgs={"dtype": "bfloat16", "enforce_eager": True})
    [tokens] = single_rank(serving_python, tmp_path, arguments, [[45, 300, 81]])
    assert len(tokens) == 16
