# SPDX-License-Identifier: Apache-2.0
"""What is read from Kubernetes' objects, and the words that users meet."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
from pydantic import ValidationError

from sovereign_operator import reasons
from sovereign_operator.api import SovereignModel
from sovereign_operator.values import MirrorProgress, NodeFacts, Taint
from tests.unit.operator.builders import a_model


def a_node_object(**status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "gpu-a", "labels": {"p": "NVIDIA-H200"}},
        "spec": {"taints": [{"key": "gpu", "effect": "NoSchedule"}], "unschedulable": True},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "allocatable": {"cpu": "64", "memory": "1Ti", "nvidia.com/gpu": "8", "hugepages-2Mi": "0"},
        }
        | status,
    }


def test_a_node_is_read_for_the_planner() -> None:
    assert NodeFacts.from_node(a_node_object(), "p") == NodeFacts(
        name="gpu-a",
        ready=True,
        schedulable=False,
        labels={"p": "NVIDIA-H200"},
        taints=(Taint("gpu", "", "NoSchedule"),),
        allocatable={"nvidia.com/gpu": 8},
        product="NVIDIA-H200",
    )


def test_thousands_of_shares_are_counted_as_the_api_server_spells_them() -> None:
    status = {"allocatable": {"gpu.example/share": "2k", "gpu.example/odd": "1500m", "cpu": "64"}}
    node = NodeFacts.from_node({"metadata": {"name": "n"}, "status": status}, "p")
    assert node.allocatable == {"gpu.example/share": 2000}


def test_a_node_that_says_nothing_is_not_ready() -> None:
    node = NodeFacts.from_node({"metadata": {"name": "new"}}, "p")
    assert (node.ready, node.allocatable, node.product) == (False, {}, None)


def test_progress_is_read_leniently() -> None:
    assert MirrorProgress.from_json({"bytesDone": 1, "file": None}) == MirrorProgress(bytes_done=1)


def test_a_model_keeps_only_what_it_knows() -> None:
    body = {
        "metadata": {
            "name": "a",
            "namespace": "b",
            "managedFields": [{}],
            "deletionTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"source": {"artifact": {"reference": "x"}}, "serving": {"image": "i"}, "future": 1},
    }
    model = SovereignModel.parse(body)
    assert model.is_being_deleted
    assert model.selector == "sovereign.dev/model=a"
    assert model.spec.upgrade.strategy == "recreate"


def test_an_object_from_another_time_is_an_error_and_not_a_guess() -> None:
    with pytest.raises(ValidationError):
        SovereignModel.parse(
            {"metadata": {"name": "a", "namespace": "b"}, "spec": {"serving": {"image": "i"}}}
        )


def test_the_owner_reference_names_the_model() -> None:
    reference = a_model("mixtral", uid="u1").owner_reference()
    assert (reference["kind"], reference["name"], reference["uid"]) == ("SovereignModel", "mixtral", "u1")
    assert reference["controller"] is True


def test_every_reason_is_one_stable_word_with_its_scenario() -> None:
    words = [
        line for line in inspect.getsource(reasons).splitlines() if re.match(r"[A-Z_]+: Final = \"", line)
    ]
    assert len(words) > 40
    for line in words:
        assert re.search(r'= "[A-Z][A-Za-z]+"', line), line
    lines = inspect.getsource(reasons).splitlines()
    for number, line in enumerate(lines):
        if line.startswith("EVENT_NOT_READY") or not re.match(r"[A-Z_]+: Final = \"", line):
            continue
        above = lines[number - 1]
        assert above.startswith("#") or re.match(r"[A-Z_]+: Final", above), f"{line} has no scenario"
