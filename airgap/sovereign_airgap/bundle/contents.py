# SPDX-License-Identifier: Apache-2.0
"""CONTENTS.txt: what a bundle carries, for whoever opens the folder. Nothing reads it back."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from sovereign_airgap.bundle.items import ChartItem, FileItem, ImageItem, Item, ModelItem
from sovereign_airgap.digest import Digest
from sovereign_airgap.strict_json import Json

_TEMPLATE = "contents.txt.j2"


def render(name: str, version: int, items: Sequence[Item], base: Digest | None) -> bytes:
    """The text, a function of its arguments; `items` in any order."""
    import jinja2  # late: only whoever makes a bundle needs it

    environment = jinja2.Environment(  # noqa: S701  (plain text; every foreign word passes `plain`)
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    environment.filters.update(plain=_plain, bytes=_bytes)
    template = resources.files("sovereign_airgap.bundle").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    ordered = sorted(items, key=lambda item: item.root.name.encode("utf-8"))
    text = environment.from_string(template).render(
        name=name,
        version=version,
        base=base,
        models=[_model(item) for item in ordered if isinstance(item, ModelItem)],
        images=[item for item in ordered if isinstance(item, ImageItem)],
        charts=[item for item in ordered if isinstance(item, ChartItem)],
        files=[item for item in ordered if isinstance(item, FileItem)],
    )
    return text.encode("ascii")


def _model(item: ModelItem) -> dict[str, object]:
    return {
        "root": item.root,
        "manifest": item.manifest,
        "licence": ", ".join(each.text for each in item.card.licenses) or "not named in its README",
        "facts": item.facts,
        "built": _built(item),
        "licenses": item.licenses,
        "resource": item.resource,
    }


def _built(item: ModelItem) -> str:
    facts = item.facts
    if facts is None:
        return ""
    experts = f"{facts.experts} experts, {facts.experts_per_token} per token" if facts.experts else "dense"
    return f"{facts.architecture}, {facts.dtype}, {facts.layers} layers, {experts}"


def _plain(value: Json) -> str:
    """Foreign words as ASCII on one line: a terminal that shows the file takes no orders from it."""
    return ascii(str(value))[1:-1]


def _bytes(value: int) -> str:
    return f"{value:,} bytes"
