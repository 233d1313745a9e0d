# SPDX-License-Identifier: Apache-2.0
"""The serving environment, the tiny model in it, and what one rank says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from ctypes.util import find_library
from pathlib import Path

import pytest

from dev import serving_env, tiny_moe
from dev.paths import cache_root

SINGLE_RANK = serving_env.ROOT / "dev" / "single_rank.py"
GIB = 1 << 30


@pytest.fixture(scope="session")
def serving_python() -> Path:
    if sys.platform != "linux" or find_library("numa") is None:
        pytest.skip("vLLM for CPUs needs Linux and libnuma1")
    cache_root().mkdir(parents=True, exist_ok=True)
    made = (serving_env.folder() / "installed").exists()
    if not made and shutil.disk_usage(cache_root()).free < 16 * GIB:
        pytest.skip("the serving environment needs 16 GiB of disk while it is made")
    return serving_env.interpreter()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny-moe")
    tiny_moe.write(directory)
    return directory


def arguments_for(model: Path, **changes: object) -> dict[str, object]:
    """The application's arguments for the tiny model on CPUs.

    In float32, because the logits of random weights are often equal in bfloat16, and then the order in which
    ranks add up decides.
    """
    engine = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 8}
    plain = {"model_id": "tiny-moe", "model_path": str(model), "device": "cpu", "maxModelLen": 256}
    return {**plain, "engineArgs": engine, **changes}


Prompt = str | list[int]


def single_rank(
    python: Path, home: Path, arguments: dict[str, object], prompts: list[Prompt]
) -> list[list[int]]:
    """The greedy tokens of one rank for each prompt, from a process of its own."""
    done = subprocess.run(
        [str(python), str(SINGLE_RANK), json.dumps(arguments), json.dumps(prompts), "--max-tokens", "16"],
        env=serving_env.variables(home),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [answer["tokens"] for answer in json.loads(done.stdout)]
