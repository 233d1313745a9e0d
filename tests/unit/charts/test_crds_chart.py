# SPDX-License-Identifier: Apache-2.0
"""The CRD that the chart installs is the generated one, and an uninstall keeps it."""

from __future__ import annotations

import yaml

from dev import chart_crds
from tests.unit.charts.rendering import ROOT, render


def test_the_chart_installs_the_generated_crd_and_keeps_it() -> None:
    [crd] = [dict(m) for m in render("sovereign-crds").manifests]
    annotations = crd["metadata"].pop("annotations")
    assert annotations["helm.sh/resource-policy"] == "keep"
    [source] = (ROOT / "crds").glob("*.yaml")
    generated = yaml.safe_load(source.read_text(encoding="utf-8"))
    generated["metadata"].pop("annotations", None)
    assert crd == generated


def test_the_copy_keeps_annotations_that_the_crd_has() -> None:
    text = "metadata: {name: x, annotations: {a: b}}"
    copy = yaml.safe_load(chart_crds.chart_copy(text))
    assert copy["metadata"]["annotations"] == {"a": "b", "helm.sh/resource-policy": "keep"}


def test_a_stale_copy_fails_the_check(tmp_path, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    crds, files = tmp_path / "crds", tmp_path / "files"
    crds.mkdir()
    (crds / "a.yaml").write_text("metadata: {name: a}")
    monkeypatch.setattr(chart_crds, "CRDS", crds)
    monkeypatch.setattr(chart_crds, "CHART_FILES", files)
    assert chart_crds.main(["--check"]) == 1
    assert "a.yaml is out of date" in capsys.readouterr().err
    assert chart_crds.main([]) == 0
    assert chart_crds.main(["--check"]) == 0
    (crds / "a.yaml").unlink()
    (crds / "b.yaml").write_text("metadata: {name: b}")
    assert chart_crds.main([]) == 0
    assert [path.name for path in files.iterdir()] == ["b.yaml"]
