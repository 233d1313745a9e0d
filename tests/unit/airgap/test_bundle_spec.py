# SPDX-License-Identifier: Apache-2.0
"""A spec is read strictly: what is wrong in it is one sentence that names the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from sovereign_airgap import strict_yaml
from sovereign_airgap.bundle.spec import from_options, load_spec
from sovereign_airgap.errors import DiskFailed, InvalidSpec
from sovereign_airgap.reference import HubReference, OciReference
from sovereign_airgap.strict_json import NotStrict

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIGEST = "sha256:" + "a" * 64

WHOLE = f"""
name: site-a
version: 3
models:
  - source: hf://Org/Tiny-MoE@{COMMIT}
    exclude: ["*.md"]
    manifest: manifests/tiny.yaml
  - source: oci://registry.example:5000/models/org/other@{DIGEST}
    repository: models/other
images:
  - reference: registry.example/tools/pause:3.10
  - {{reference: "docker.io/library/busybox@{DIGEST}", platform: linux/arm64/v8}}
charts:
  - path: charts/sovereign-operator
files:
  - path: wheels
  - {{path: /srv/crds.yaml, title: crds/crds.yaml}}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "spec.yaml"
    path.write_text(text)
    return path


def test_a_spec_is_read_and_its_paths_count_from_its_folder(tmp_path: Path) -> None:
    spec = load_spec(written(tmp_path, WHOLE))
    assert (spec.name, spec.version) == ("site-a", 3)
    first, second = spec.models
    assert first.source == HubReference("Org/Tiny-MoE", COMMIT)
    assert first.wish.exclude == ("*.md",)
    assert first.manifest == tmp_path / "manifests/tiny.yaml"
    assert isinstance(second.source, OciReference)
    assert str(second.source.digest) == DIGEST
    assert [image.platform for image in spec.images] == [None, "linux/arm64/v8"]
    assert spec.charts[0].path == tmp_path / "charts/sovereign-operator"
    assert [str(file.path) for file in spec.files] == [str(tmp_path / "wheels"), "/srv/crds.yaml"]


def test_options_make_the_same_spec_as_a_file(tmp_path: Path) -> None:
    text = f"name: a\nmodels: [{{source: 'hf://o/n@{COMMIT}'}}]\nimages: [{{reference: h.io/x:1}}]\n"
    text += "charts: [{path: /c}]\nfiles: [{path: /f}, {path: /g, title: h/g}]\n"
    made = from_options(
        "a",
        None,
        models=[f"hf://o/n@{COMMIT}"],
        images=["h.io/x:1"],
        charts=[Path("/c")],
        files=["/f", "/g=h/g"],
    )
    assert made == load_spec(written(tmp_path, text))


MODEL = f"name: a\nmodels:\n- source: hf://o/n@{COMMIT}\n"
DEFECTS = {
    "": "0 documents",
    "[]": "list at the top level",
    "name: a": "should carry something",
    "models: []": "name: Field required",
    "name: a\nname: b": "'name' twice in line 2",
    "name: &x a\nmodels: *x": "an alias",
    "name: [": "line 1",
    "name: A": "name should be at most 63 lower-case",
    "name: true": "name: Input should be a valid string",
    f"{MODEL}version: 0": "version: Input should be greater than or equal to 1",
    f"{MODEL}version: '3'": "version: Input should be a valid integer",
    f"{MODEL}version: 1.5": "version: Input should be a valid integer",
    f"{MODEL}colour: red": "colour: Extra inputs",
    f"{MODEL}  repository: UP": "models[0]: repository should be a name in lower case",
    f"{MODEL}  include: '*'": "models[0].include",
    f"{MODEL}  include: ['']": "models[0].include[0]",
    "name: a\nmodels: {}": "models: Input should be a valid tuple",
    "name: a\nmodels:\n- source: hf://o/n@main": "models[0].source: Expected a commit of 40",
    "name: a\nmodels:\n- source: o/n": "should begin with hf:// or oci://",
    "name: a\nmodels:\n- source: 5": "should be hf://org/name@COMMIT",
    "name: a\nmodels:\n- source: oci://h.io/models/x:latest": "should end with @sha256",
    "name: a\nmodels:\n- source: oci://h.io/models/x@sha256:12": "Expected a digest",
    f"name: a\nmodels:\n- {{source: 'oci://h.io/m@{DIGEST}', include: ['*']}}": "are for hf:// sources",
    "name: a\nimages:\n- reference: nginx:1.2": "should begin with the registry's host",
    "name: a\nimages:\n- reference: library/nginx": "should begin with the registry's host",
    "name: a\nimages:\n- reference: docker.io/library/nginx": "a tag or digest",
    "name: a\nimages:\n- reference: docker.io/Library/nginx:1": "repository name in lower case",
    "name: a\nimages:\n- {reference: 'h.io/x:1', platform: linux}": "images[0]: platform should be as in",
    "name: a\nimages:\n- {reference: 'h.io/x:1', platform: ../..}": "images[0]: platform should be as in",
    "name: a\ncharts:\n- path: ''": "charts[0].path: should be a path",
    "name: a\nfiles:\n- {path: x, title: ../x}": "files[0]: the title '../x' has the component '..'",
    "name: a\nfiles:\n- {path: x, title: /x}": "is absolute",
    "name: a\nfiles:\n- {path: x, title: bom.cdx.json}": "belongs to the bundle itself",
    "name: a\nfiles:\n- {path: x, title: Licenses/x}": "belongs to the bundle itself",
    "name: a\nfiles:\n- {path: x, title: contents.TXT}": "belongs to the bundle itself",
}


@pytest.mark.parametrize("text", DEFECTS, ids=[name.replace("\n", " ")[:60] for name in DEFECTS])
def test_a_bad_spec_is_told_in_one_sentence(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidSpec) as told:
        load_spec(written(tmp_path, text))
    message = str(told.value)
    assert DEFECTS[text] in message
    assert "\n" not in message
    assert message.endswith(".")
    assert told.value.exit_code == 3


def test_a_spec_that_is_too_large_or_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="at most"):
        load_spec(written(tmp_path, "#" * (1024 * 1024 + 1)))
    with pytest.raises(DiskFailed, match="No such file"):
        load_spec(tmp_path / "none.yaml")
    (tmp_path / "spec.yaml").write_bytes(b"name: \xff")
    with pytest.raises(InvalidSpec, match="utf-8"):
        load_spec(tmp_path / "spec.yaml")


YAML = {
    b"a: 1\na: 2": "twice",
    b"a: &x 1\nb: *x": "alias",
    b"<<: {a: 1}": "merge",
    b"1: 2": "no string",
    b"a: 1\nb: !!set {x}": "tag 'tag:yaml.org,2002:set' in line 2",
    b"a: !!python/object:os.system x": "tag",
    b"a: !!bool x": "tag",
    b"a: !!int ''": "tag",
    b"a: !!timestamp x": "tag",
    b"!!map {a: 1}": "tag",
    b"a: [!!str 1]": "tag",
    b"!!str a: 1": "tag",
    b"a: ! 1": "tag '!'",
    b"a: !own 1": "tag '!own'",
    b"a: .inf\nb: 1.0e999": "without end",
    b"- 1\n---\n- 2": "2 documents",
    b"[" * 60: "nested",
    b"\xff": "utf-8",
}


@pytest.mark.parametrize("text", YAML, ids=[str(text[:20]) for text in YAML])
def test_yaml_with_more_than_one_reading_is_refused(text: bytes) -> None:
    with pytest.raises(NotStrict, match=YAML[text]):
        strict_yaml.loads(text)


def test_yaml_means_what_is_written() -> None:
    text = b"{a: no, b: 2024-01-01, c: 12:30, d: 1_000, e: 0644, f: 1.5, g: ~, h: true, i: 1e3, j: '1'}"
    assert strict_yaml.load_object(text) == {
        "a": "no", "b": "2024-01-01", "c": "12:30", "d": "1_000", "e": 0o644, "f": 1.5, "g": None, "h": True,
        "i": 1000.0, "j": "1",
    }  # fmt: skip
