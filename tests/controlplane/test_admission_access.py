# SPDX-License-Identifier: Apache-2.0
"""Ways into a sealed namespace through the API server: shut, audited, and open to who may break the glass."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from dev.cluster import Cluster
from tests.controlplane.admission_site import (
    FIREMAN,
    KUBERAY,
    OPERATOR,
    SOMEBODY,
    Gate,
    a_pod,
    a_service,
    audited,
    guarded,
)
from tests.controlplane.api_server import eventually

ACCESS, LABEL = "sovereign-sealed-access", "sovereign-sealed-label"
# Method and what follows the pod's path.
WAYS = {
    "exec": ("POST", "exec?command=sh&stdout=true"),
    "exec as a web socket asks": ("GET", "exec?command=sh&stdout=true"),
    "attach": ("POST", "attach?stdout=true"),
    "port-forward": ("POST", "portforward?ports=8265"),
    "the API server as a proxy": ("GET", "proxy/api/version"),
}
UNSEALED = {"metadata": {"labels": {"sovereign.dev/sealed": None}}}


@pytest.fixture(scope="module")
def gate(control_plane: Cluster) -> Iterator[Gate]:
    with guarded(control_plane) as gate:
        gate.makes(a_pod("model-head", {"sovereign.dev/model": "m"}), KUBERAY)
        gate.makes(a_service(), SOMEBODY)
        yield gate


@pytest.mark.parametrize("way", WAYS)
def test_nobody_enters_a_sealed_pod_without_the_break_glass_permission(gate: Gate, way: str) -> None:
    method, what = WAYS[way]
    path = f"{gate.path('Pod', gate.sealed, 'model-head')}/{what}"
    for who in (SOMEBODY, KUBERAY, OPERATOR):
        answer = gate.ask(who, method, path)
        assert answer.refused_by(ACCESS), answer.text
        assert who in answer.text
        assert "sovereign-break-glass" in answer.text
    # Nothing runs here: whoever is let through is told that the pod has no node yet.
    assert not gate.ask(FIREMAN, method, path).refused


def test_a_service_is_no_way_around(gate: Gate) -> None:
    path = f"{gate.path('Service', gate.sealed, 's')}/proxy/"
    assert gate.ask(SOMEBODY, "GET", path).refused_by(ACCESS)
    assert not gate.ask(FIREMAN, "GET", path).refused


def test_no_debugging_container_joins_a_sealed_pod(gate: Gate) -> None:
    path = f"{gate.path('Pod', gate.sealed, 'model-head')}/ephemeralcontainers?dryRun=All"
    debugger = {"spec": {"ephemeralContainers": [{"name": "debug", "image": "docker.example/sh"}]}}
    media = "application/strategic-merge-patch+json"
    assert gate.ask(SOMEBODY, "PATCH", path, debugger, media).refused_by(ACCESS)
    assert gate.ask(FIREMAN, "PATCH", path, debugger, media).code == 200


def test_elsewhere_they_are_what_the_roles_say(gate: Gate) -> None:
    for method, what in WAYS.values():
        path = f"{gate.path('Pod', gate.open, 'waiting')}/{what}"
        assert not gate.ask(SOMEBODY, method, path).refused


def test_the_permission_holds_in_its_own_namespace_only(gate: Gate) -> None:
    gate.patch("Namespace", None, gate.open, {"metadata": {"labels": {"sovereign.dev/sealed": "true"}}})
    path = f"{gate.path('Pod', gate.open, 'waiting')}/exec?command=sh&stdout=true"
    try:
        eventually(lambda: gate.ask(SOMEBODY, "POST", path).refused_by(ACCESS), "the label is known", 10)
        assert gate.ask(FIREMAN, "POST", path).refused_by(ACCESS)
    finally:
        gate.patch("Namespace", None, gate.open, UNSEALED)


def test_reading_and_deleting_stay_with_the_roles(gate: Gate) -> None:
    path = gate.path("Pod", gate.sealed, "model-head")
    assert gate.ask(SOMEBODY, "GET", path).code == 200
    assert gate.ask(SOMEBODY, "DELETE", path + "?dryRun=All").code == 200


@pytest.mark.parametrize("sub", ["", "status"])
@pytest.mark.parametrize("value", [None, "false", ""])
def test_a_namespace_keeps_its_label(gate: Gate, value: str | None, sub: str) -> None:
    change = {"metadata": {"labels": {"sovereign.dev/sealed": value}}}
    answer = gate.merges("Namespace", gate.sealed, change, SOMEBODY, sub)
    assert answer.refused_by(LABEL), answer.text
    assert gate.sealed in answer.text
    assert gate.merges("Namespace", gate.sealed, change, FIREMAN, sub).code == 200


def test_other_labels_of_a_namespace_are_free_and_so_is_putting_it_under_seal(gate: Gate) -> None:
    assert gate.merges("Namespace", gate.sealed, {"metadata": {"labels": {"team": "a"}}}).code == 200
    sealing = {"metadata": {"labels": {"sovereign.dev/sealed": "true"}}}
    assert gate.merges("Namespace", gate.open, sealing).code == 200


def test_breaking_the_glass_is_written_down(gate: Gate) -> None:
    path = f"{gate.path('Pod', gate.sealed, 'model-head')}/exec?command=sh&stdout=true"
    gate.ask(FIREMAN, "POST", path)
    gate.merges("Namespace", gate.sealed, UNSEALED, FIREMAN)
    moved = {"metadata": {"labels": {"sovereign.dev/model": "other"}}}
    gate.merges("Pod", "model-head", moved, FIREMAN)
    unsealing = f"asked to take the label sovereign.dev/sealed off namespace {gate.sealed}"
    wanted = {
        f"{ACCESS}/access": f"{FIREMAN} asked for exec of {gate.sealed}/model-head",
        f"{LABEL}/label": f"{FIREMAN} {unsealing}",
        "sovereign-sealed-set/labels": f"{FIREMAN} changed the sealing labels of pod model-head",
    }
    for key, text in wanted.items():
        eventually(partial(_says, gate, key, text), f"the audit log says {text}", 20)


def _says(gate: Gate, key: str, text: str) -> bool:
    return text in audited(gate, key)


def test_a_refusal_is_written_down_too(gate: Gate) -> None:
    gate.ask(SOMEBODY, "POST", f"{gate.path('Pod', gate.sealed, 'model-head')}/attach?stdout=true")
    text = f"{SOMEBODY} asked for attach of {gate.sealed}/model-head"
    eventually(lambda: text in audited(gate, f"{ACCESS}/access"), "the audit log has the refusal", 20)
