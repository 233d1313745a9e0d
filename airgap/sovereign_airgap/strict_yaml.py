# SPDX-License-Identifier: Apache-2.0
"""YAML as we accept it: JSON's values only, one meaning, no expansion.

Aliases can make a kilobyte into a gigabyte, a duplicate key has two readings, and `2024-01-01` or `no` become
something else than what was written; an explicit tag (`!!bool x`) asks for what is not there. So none of
these is taken.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from sovereign_airgap.strict_json import Json, NotStrict

_MAX_DEPTH = 50
_PREFIX = "tag:yaml.org,2002:"
_KEPT = frozenset([_PREFIX + "null", _PREFIX + "merge"])


class _Loader(yaml.SafeLoader):
    """Of YAML 1.1's implicit types: null, true and false, numbers, strings."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise NotStrict("an alias (*name): write the value out")
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if event.tag is not None:
            raise NotStrict(f"the tag {event.tag[:100]!a}{_where(event)}: write the value without it")
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise NotStrict("nested too deeply")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _KEPT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    (_PREFIX + "bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    (_PREFIX + "int", "[-+]?(?:0|[1-9][0-9]*|0[0-7]+|0x[0-9a-fA-F]+)", "-+0123456789"),
    (_PREFIX + "float", r"[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)", "-+0123456789"),
):
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list(_first))


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for key_node, value_node in node.value:
        if key_node.tag == _PREFIX + "merge":
            raise NotStrict(f"a merge key{_where(key_node)}: write the values out")
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise NotStrict(f"a key that is no string{_where(key_node)}")
        if key in found:
            raise NotStrict(f"the key {key[:100]!r} twice{_where(key_node)}")
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_Loader.add_constructor(_PREFIX + "map", _construct_mapping)


def loads(content: bytes) -> Json:
    """Parses one document of UTF-8 YAML; raises NotStrict, whose text is the end of a sentence."""
    return _one(_parse(content))


def load_object(content: bytes) -> dict[str, Json]:
    """As `loads`, for documents whose top level must be a mapping."""
    value = loads(content)
    if not isinstance(value, dict):
        raise NotStrict(f"{type(value).__name__} at the top level")
    return value


def _parse(content: bytes) -> list[Json]:
    try:
        return list(yaml.load_all(content.decode("utf-8"), _Loader))
    except yaml.YAMLError as error:
        raise NotStrict(_told(error)) from error
    except RecursionError as error:
        raise NotStrict("nested too deeply") from error
    except NotStrict:
        raise
    except ValueError as error:  # no UTF-8, integers of thousands of digits
        raise NotStrict(str(error)[:200]) from error


def _one(documents: list[Json]) -> Json:
    if len(documents) != 1:
        raise NotStrict(f"{len(documents)} documents instead of one")
    _require_finite(documents[0])
    return documents[0]


def _require_finite(value: Json) -> None:
    if isinstance(value, dict):
        for child in value.values():
            _require_finite(child)
    elif isinstance(value, list):
        for child in value:
            _require_finite(child)
    elif isinstance(value, float) and not math.isfinite(value):
        raise NotStrict("a number without end")


def _told(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    return f"{str(problem)[:150]}{'' if mark is None else f' in line {mark.line + 1}'}"


def _where(node: Any) -> str:
    return f" in line {node.start_mark.line + 1}"
