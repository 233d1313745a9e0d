# SPDX-License-Identifier: Apache-2.0
"""The CRD as a document: what `make verify` holds, without an API server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sovereign_operator.api import RESERVED_ENGINE_ARG_PREFIX, RESERVED_ENGINE_ARGS
from sovereign_operator.architectures import ENGINE, NATIVE_ARCHITECTURES
from sovereign_operator.crd import CRD_FILE, crd, main, object_schema, render
from sovereign_operator.crd_rules import RULES
from sovereign_serving.engine_arguments import objection_to
from tests.unit.operator.builders import ROOT

TEXT = render()
CHECKED_IN = ROOT / "crds" / CRD_FILE
Schema = dict[str, Any]


def fields(schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Every field below a schema, with its path."""
    for name, child in schema.get("properties", {}).items():
        yield f"{path}.{name}", child
        yield from fields(child, f"{path}.{name}")
    for keyword in ("items", "additionalProperties"):
        if isinstance(schema.get(keyword), dict):
            yield f"{path}[]", schema[keyword]
            yield from fields(schema[keyword], f"{path}[]")


SPEC = list(fields(object_schema()["properties"]["spec"], "spec"))
STATUS = list(fields(object_schema()["properties"]["status"], "status"))


def test_the_checked_in_file_is_what_the_models_say() -> None:
    assert CHECKED_IN.read_text(encoding="utf-8") == TEXT


def test_it_is_small_enough_for_a_client_side_apply() -> None:
    assert len(TEXT.encode()) < 100_000


def test_check_finds_a_difference_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sovereign_operator.crd.render", lambda: TEXT)
    assert main(["--output", str(tmp_path)]) == 0
    assert main(["--check", "--output", str(tmp_path)]) == 0
    path = tmp_path / CRD_FILE
    path.write_text(TEXT.replace("smodel", "model"), encoding="utf-8")
    before = path.read_bytes()
    assert main(["--check", "--output", str(tmp_path)]) == 1
    assert path.read_bytes() == before
    assert "+    - smodel" in capsys.readouterr().err


@pytest.mark.parametrize(("path", "schema"), SPEC + STATUS, ids=[path for path, _ in SPEC + STATUS])
def test_a_field_is_structural_and_bounded(path: str, schema: Schema) -> None:
    assert schema["type"] in {"object", "array", "string", "integer", "boolean"}  # no floats
    assert not {"$ref", "anyOf", "oneOf", "allOf", "nullable", "title", "$defs"} & schema.keys()
    match schema["type"]:
        case "string":
            assert "maxLength" in schema or "enum" in schema
        case "array":
            assert schema["maxItems"] and schema["x-kubernetes-list-type"] in {"atomic", "map"}
        case "object" if "additionalProperties" in schema:
            assert schema["maxProperties"]
        case "integer":
            assert "minimum" in schema


@pytest.mark.parametrize(
    ("path", "schema"), [each for each in SPEC if not each[0].endswith("[]")], ids=lambda each: str(each)[:60]
)
def test_a_field_of_spec_says_its_default_and_an_example(path: str, schema: Schema) -> None:
    text = schema["description"]
    assert re.search(r"\.( |$)|Example: ", text), text
    if schema["type"] in {"string", "integer", "boolean"}:
        assert "Example: " in text, path
    if schema["type"] == "integer":
        assert "Unit: " in text, path
    default = schema.get("default")
    if isinstance(default, str | int) and not isinstance(default, bool):
        assert f"Default: {default}" in text, path


@pytest.mark.parametrize(("path", "schema"), STATUS, ids=[path for path, _ in STATUS])
def test_a_field_of_status_is_described_and_has_no_default(path: str, schema: Schema) -> None:
    assert path.endswith("[]") or schema["description"]
    assert "default" not in schema


def test_lists_that_are_merged_have_their_key() -> None:
    merged = {path: schema["x-kubernetes-list-map-keys"] for path, schema in SPEC + STATUS
              if schema.get("x-kubernetes-list-type") == "map"}  # fmt: skip
    assert merged == {"spec.serving.adapters": ["name"], "status.conditions": ["type"]}


def test_a_rules_message_is_one_sentence_for_people() -> None:
    for rule in RULES:
        assert rule.message[0].isalpha() and rule.message[-1] != "." and "\n" not in rule.message
        assert len(rule.message) <= 250, rule.name
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_nothing_in_it_opens_egress() -> None:
    names = {path.rpartition(".")[2].casefold() for path, _ in SPEC}
    assert not [name for name in names if "egress" in name or "allow" in name]


def test_names_and_columns() -> None:
    spec = crd()["spec"]
    assert spec["names"]["shortNames"] == ["smodel"] and spec["names"]["categories"] == ["sovereign"]
    (version,) = spec["versions"]
    assert version["subresources"] == {"status": {}}
    columns = {column["name"]: column.get("priority", 0) for column in version["additionalPrinterColumns"]}
    always = ["Model", "Ready", "Reason", "Mirrored", "Sealed", "Replicas", "Age"]
    assert [name for name, priority in columns.items() if not priority] == always
    assert [name for name, priority in columns.items() if priority] == ["Distributed", "URL"]


def test_the_file_has_no_anchors() -> None:
    assert "&id" not in TEXT


@pytest.mark.parametrize("name", [*RESERVED_ENGINE_ARGS, f"{RESERVED_ENGINE_ARG_PREFIX}_size"])
def test_what_the_api_server_refuses_the_serving_image_refuses_too(name: str) -> None:
    assert objection_to(name) is not None


def test_the_native_architectures_are_those_of_the_engine_that_is_locked() -> None:
    lock = (ROOT / "locks" / "serving.txt").read_text(encoding="utf-8")
    assert f"vllm=={ENGINE.removeprefix('vLLM ')}" in lock
    assert {"DeepseekV3ForCausalLM", "Mistral3ForConditionalGeneration"} <= NATIVE_ARCHITECTURES
