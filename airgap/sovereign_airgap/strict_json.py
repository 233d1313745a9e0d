# SPDX-License-Identifier: Apache-2.0
"""JSON as we accept it from others: one meaning only, bounded depth, no surprises.

Two readers that disagree about a duplicate key have read two different files; so a duplicate is an error.
"""

from __future__ import annotations

import json
from typing import Never, Union

Json = Union[None, bool, int, float, str, list["Json"], dict[str, "Json"]]  # noqa: UP007


class NotStrict(ValueError):
    """The text is not JSON, or JSON with more than one reading."""


def loads(content: bytes) -> Json:
    """Parses UTF-8 JSON; refuses duplicate keys, NaN and Infinity, a byte order mark, endless nesting."""
    try:
        value: Json = json.loads(
            content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except RecursionError as error:
        raise NotStrict("nested too deeply") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise NotStrict(str(error)) from error
    except ValueError as error:  # integers of thousands of digits
        raise NotStrict(str(error)) from error
    return value


def load_object(content: bytes) -> dict[str, Json]:
    """As `loads`, for documents whose top level must be an object."""
    value = loads(content)
    if not isinstance(value, dict):
        raise NotStrict("expected an object at the top level")
    return value


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise NotStrict(f"the key {name[:100]!r} occurs twice in one object")
            seen.add(name)
    return found


def _no_constant(text: str) -> Never:
    raise NotStrict(f"{text} is not JSON")
