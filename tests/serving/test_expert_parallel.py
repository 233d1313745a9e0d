# SPDX-License-Identifier: Apache-2.0
"""A mixture of experts says the same, whether one rank holds all experts or two ranks share them.

The real Ray Serve and the real vLLM on CPUs, deployed as KubeRay deploys: `build` by its import path through
the dashboard's REST API.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from dev.cluster import node
from tests.serving.conftest import Prompt, arguments_for, single_rank
from tests.serving.ray_head import RayHead

pytestmark = [pytest.mark.serving, pytest.mark.timeout(1200)]

# The prompt of three tokens is short enough for the kernels' special cases.
PROMPTS: list[Prompt] = ["Who are you?", "What is the capital of France?", [45, 300, 81]]


@pytest.fixture(scope="module")
def reference(serving_python: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    tokens = single_rank(serving_python, tmp_path_factory.mktemp("home"), arguments_for(model), PROMPTS)
    # All different, and not one token again and again: else the comparison would show nothing.
    assert len({tuple(answer) for answer in tokens}) == len(PROMPTS)
    assert all(len(set(answer)) > 8 for answer in tokens)
    return tokens


@pytest.fixture(scope="module")
def head(serving_python: Path) -> Iterator[RayHead]:
    # More CPUs than there are: Ray's book-keeping wants two for a rank, and they are idle most of the time.
    with RayHead(serving_python, cpus=8) as ray_head:
        yield ray_head


def tokens_from(head: RayHead, prompt: Prompt) -> list[int]:
    """The served model's greedy tokens through its OpenAI endpoint."""
    wish = {"model": "tiny-moe", "temperature": 0, "max_tokens": 16, "return_token_ids": True}
    question: dict[str, object]
    if isinstance(prompt, str):
        path, question = "/v1/chat/completions", {"messages": [{"role": "user", "content": prompt}]}
    else:
        path, question = "/v1/completions", {"prompt": prompt}
    answer = httpx2.post(head.http + path, json={**wish, **question}, timeout=120)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["choices"][0]["token_ids"])


def expert_ranks(lines: list[str]) -> set[str]:
    """The ranks that logged how many experts they hold, as in `0/2 4/8`."""
    pattern = re.compile(r"\[EP Rank (\d+/\d+)\].*Local/global number of experts: (\d+/\d+)")
    found = (pattern.search(line) for line in lines)
    return {f"{match[1]} {match[2]}" for match in found if match}


def test_impossible_arguments_fail_with_our_sentence(head: RayHead, model: Path) -> None:
    status = head.deploy(arguments_for(model, expert=True))
    assert status.startswith("DEPLOY_FAILED")
    assert "expert parallelism needs tensor times data greater than 1" in status


@pytest.mark.parametrize(
    ("parallelism", "ranks"),
    [
        ({"data": 2, "expert": True}, {"0/2 4/8", "1/2 4/8"}),
        # Of the ranks of one engine only the first writes its log.
        ({"tensor": 2, "expert": True}, {"0/2 4/8"}),
    ],
    ids=["data", "tensor"],
)
def test_two_ranks_say_what_one_rank_says(
    head: RayHead,
    model: Path,
    reference: list[list[int]],
    parallelism: dict[str, object],
    ranks: set[str],
) -> None:
    if parallelism.get("data") and node.impossible() is None:
        pytest.skip("tests/cluster asks the same of two ranks in two pods, and this machine can run it")
    before = set(head.log_lines("EP Rank"))
    assert head.deploy(arguments_for(model, **parallelism)) == "RUNNING"
    assert expert_ranks([line for line in head.log_lines("EP Rank") if line not in before]) == ranks
    # Several times: the router sends each request to one of the ranks, and the other takes part all the same.
    for _ in range(3):
        assert [tokens_from(head, prompt) for prompt in PROMPTS] == reference


def test_the_dashboard_answers_nobody_without_the_token(head: RayHead) -> None:
    # Whoever may deploy an application may run any code in the pods.
    answer = httpx2.get(head.dashboard + "/api/serve/applications/", timeout=30)
    assert answer.status_code == 401
