# SPDX-License-Identifier: Apache-2.0
"""The CustomResourceDefinition, made from the models in `api.py` and the rules in `crd_rules.py`.

`python -m sovereign_operator.crd` writes `crds/sovereign.dev_sovereignmodels.yaml`; with `--check` it only
compares and exits 1 on a difference. The result is a structural schema: no references, no null, no floats,
defaults included.
"""

from __future__ import annotations

import argparse
import copy
import difflib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel

from sovereign_operator.api import (
    CATEGORY,
    GROUP,
    KIND,
    PLURAL,
    SHORT_NAME,
    SINGULAR,
    VERSION,
    SovereignModelSpec,
    SovereignModelStatus,
)
from sovereign_operator.crd_rules import RULES, Rule

Schema = dict[str, Any]

CRD_NAME: Final = f"{PLURAL}.{GROUP}"
CRD_FILE: Final = f"{GROUP}_{PLURAL}.yaml"
HEADER: Final = (
    "# SPDX-License-Identifier: Apache-2.0\n"
    "# Made by `python -m sovereign_operator.crd`: change the models, not this file.\n"
)

# Lists that server-side apply merges by a key, and what that key is. All other lists are replaced as a whole.
LIST_MAP_KEYS: Final[Mapping[str, str]] = {"spec.serving.adapters": "name", "status.conditions": "type"}
# Integers that can pass two thousand million.
INT64_FIELDS: Final = {
    "spec.serving.maxModelLen",
    "status.artifact.bytes",
    "status.delivery.bytesDone",
    "status.delivery.bytesTotal",
    "status.delivery.nodes[].bytesDone",
    "status.delivery.nodes[].bytesTotal",
    "status.delivery.rate",
    "status.mirror.bytesDone",
    "status.mirror.bytesTotal",
    "status.observedGeneration",
    "status.conditions[].observedGeneration",
}
KEPT_KEYWORDS: Final = (
    "type", "description", "enum", "default", "pattern", "minLength", "maxLength",
    "minimum", "maximum", "minItems", "maxItems", "maxProperties",
)  # fmt: skip


def _column(name: str, path: str, description: str, kind: str = "string", priority: int = 0) -> Schema:
    column: Schema = {"name": name, "type": kind, "jsonPath": path, "description": description}
    return column | ({"priority": priority} if priority else {})


def _condition(name: str, field: str) -> str:
    return f'.status.conditions[?(@.type=="{name}")].{field}'


PRINTER_COLUMNS: Final = (
    _column("Model", ".status.model", "Repository and commit."),
    _column("Ready", _condition("Ready", "status"), "Whether it serves as asked for."),
    _column("Reason", _condition("Ready", "reason"), "Why it is, or is not, Ready."),
    _column("Mirrored", _condition("Mirrored", "status"), "Whether the weights are in the registry."),
    _column("Sealed", _condition("EgressSealed", "status"), "Whether it is proven that nothing gets out."),
    _column("Replicas", ".status.readyReplicas", "Copies that answer.", kind="integer"),
    _column(
        "Distributed",
        _condition("Distributed", "status"),
        "Whether its nodes have the weights (delivery.mode nodeCache).",
        priority=1,
    ),
    _column("URL", ".status.endpoint", "OpenAI-compatible address inside the cluster.", priority=1),
    _column("Age", ".metadata.creationTimestamp", "Time since creation.", kind="date"),
)


def crd() -> Schema:
    """The CustomResourceDefinition as plain data."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": CRD_NAME},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": SINGULAR,
                "shortNames": [SHORT_NAME],
                "categories": [CATEGORY],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [dict(column) for column in PRINTER_COLUMNS],
                    "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": object_schema()},
                }
            ],
        },
    }


def object_schema() -> Schema:
    """The structural schema of the whole object, rules included."""
    root: Schema = {
        "type": "object",
        "description": "A SovereignModel is one open-weight model: mirrored with every digest checked, "
        "served by Ray Serve on the cluster's own accelerators, and sealed so that nothing gets out.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"Always {GROUP}/{VERSION}."},
            "kind": {"type": "string", "description": f"Always {KIND}."},
            "metadata": {"type": "object"},
            "spec": structural(SovereignModelSpec, "spec"),
            "status": structural(SovereignModelStatus, "status"),
        },
    }
    for rule in RULES:
        _attach(root, rule)
    return root


def structural(model: type[BaseModel], path: str) -> Schema:
    """The structural schema of a pydantic model. `status` gets no defaults: absent means not reported."""
    schema = model.model_json_schema(by_alias=True)
    return _structural(schema, schema.get("$defs", {}), path)


def _structural(schema: Schema, definitions: Mapping[str, Schema], path: str) -> Schema:
    schema = _resolved(schema, definitions)
    result: Schema = {key: schema[key] for key in KEPT_KEYWORDS if key in schema}
    if result.get("type") == "number":
        raise TypeError(f"{path} is a float, and floats do not survive a round trip: use a string")
    if result.get("type") == "integer":
        result["format"] = "int64" if path in INT64_FIELDS else "int32"
    reported = path.startswith("status")
    if reported:
        result.pop("default", None)
    if "properties" in schema:
        properties = {
            name: _structural(value, definitions, f"{path}.{name}")
            for name, value in schema["properties"].items()
        }
        for name, value in schema["properties"].items():
            optional = "$ref" in value and name not in schema.get("required", ())
            if optional and not reported and "properties" in properties[name]:
                # Without this the defaults inside would appear only where a user wrote the object itself; and
                # they are spelt out because the API server runs the rules over a default as it stands here.
                inner = properties[name]["properties"]
                properties[name]["default"] = {
                    key: copy.deepcopy(value["default"]) for key, value in inner.items() if "default" in value
                }
        result["properties"] = properties
        if schema.get("required"):
            result["required"] = schema["required"]
    elif isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = _structural(schema["additionalProperties"], definitions, f"{path}.*")
    if "items" in schema:
        result["items"] = _structural(schema["items"], definitions, f"{path}[]")
        key = LIST_MAP_KEYS.get(path)
        result["x-kubernetes-list-type"] = "map" if key else "atomic"
        if key:
            result["x-kubernetes-list-map-keys"] = [key]
    return result


def _resolved(schema: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """The schema with its reference inlined and its null alternative removed; the field's own words win."""
    own = {key: value for key, value in schema.items() if key not in ("$ref", "anyOf", "allOf", "title")}
    if own.get("default", ...) is None:
        del own["default"]
    alternatives = [option for option in schema.get("anyOf", ()) if option.get("type") != "null"]
    if len(alternatives) > 1:
        raise TypeError(f"a field with alternatives cannot be structural: {alternatives}")
    if "$ref" in schema:
        inner = _resolved(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    elif alternatives:
        inner = _resolved(alternatives[0], definitions)
    else:
        inner = {}
    return inner | own


def _attach(root: Schema, rule: Rule) -> None:
    """Puts a rule at its field. Raises KeyError where the path names no field."""
    target = root
    for name in filter(None, rule.path.split(".")):
        target = target["properties"][name]
    target.setdefault("x-kubernetes-validations", []).append(rule.as_schema())


def render() -> str:
    """The file's text: the same models give the same bytes."""
    return HEADER + yaml.safe_dump(crd(), sort_keys=False, width=110, allow_unicode=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sovereign_operator.crd", description="Write the CRD.")
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 on a difference")
    parser.add_argument("--output", type=Path, default=Path("crds"), help="folder (default: crds)")
    options = parser.parse_args(arguments)
    path: Path = options.output / CRD_FILE
    text = render()
    if not options.check:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return 0
    found = path.read_text(encoding="utf-8") if path.exists() else ""
    if found == text:
        return 0
    sys.stderr.writelines(
        difflib.unified_diff(found.splitlines(True), text.splitlines(True), str(path), "from the models")
    )
    sys.stderr.write(f"{path} is not what the models say; run python -m sovereign_operator.crd\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
