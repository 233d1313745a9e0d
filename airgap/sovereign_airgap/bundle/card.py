# SPDX-License-Identifier: Apache-2.0
"""A model's card: what the front matter of its README says about licence and task.

Written by strangers for a website, so everything may be missing or odd: then nothing is known, and nothing
fails.
"""

from __future__ import annotations

from dataclasses import dataclass

from sovereign_airgap import strict_yaml
from sovereign_airgap.strict_json import Json, NotStrict

_FENCE = b"---"
_MAX_TEXT = 200

# From the Hub's names to SPDX's. What is not here is told by its own name.
_SPDX = {
    name.lower(): name
    for name in (
        "Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "BSD-3-Clause-Clear", "ISC", "MPL-2.0", "Zlib",
        "CC0-1.0", "CC-BY-2.0", "CC-BY-2.5", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0",
        "CC-BY-NC-2.0", "CC-BY-NC-3.0", "CC-BY-NC-4.0", "CC-BY-ND-4.0", "CC-BY-NC-ND-3.0", "CC-BY-NC-ND-4.0",
        "CC-BY-NC-SA-2.0", "CC-BY-NC-SA-3.0", "CC-BY-NC-SA-4.0", "AFL-3.0", "Artistic-2.0", "BSL-1.0",
        "ECL-2.0", "EPL-1.0", "EPL-2.0", "EUPL-1.1", "EUPL-1.2", "MS-PL", "NCSA", "OFL-1.1", "OSL-3.0",
        "PostgreSQL", "Unlicense", "WTFPL", "CDLA-Sharing-1.0", "CDLA-Permissive-1.0", "CDLA-Permissive-2.0",
        "ODbL-1.0", "PDDL-1.0", "ODC-By-1.0", "LPPL-1.3c",
    )
} | {
    "gpl-2.0": "GPL-2.0-only", "gpl-3.0": "GPL-3.0-only", "agpl-3.0": "AGPL-3.0-only",
    "lgpl-2.1": "LGPL-2.1-only", "lgpl-3.0": "LGPL-3.0-only", "gfdl": "GFDL-1.3-only",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class License:
    """A licence as the card names it: by its SPDX id, or by some other name."""

    id: str | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        return self.id or self.name or "unknown"


@dataclass(frozen=True, slots=True)
class Card:
    """What the card says; empty where it says nothing."""

    licenses: tuple[License, ...] = ()
    task: str = ""

    @classmethod
    def parse(cls, readme: bytes) -> Card:
        """Reads the start of a README; never raises."""
        try:
            front = strict_yaml.load_object(_front_matter(readme))
        except NotStrict:
            return cls()
        return cls(_licenses(front), _text(front.get("pipeline_tag")))


def _front_matter(readme: bytes) -> bytes:
    lines = readme.lstrip(b"\xef\xbb\xbf").splitlines(keepends=True)
    if not lines or lines[0].strip() != _FENCE:
        raise NotStrict("no front matter")
    for at, line in enumerate(lines[1:], 1):
        if line.strip() == _FENCE:
            return b"".join(lines[1:at])
    raise NotStrict("front matter without an end")


def _licenses(front: dict[str, Json]) -> tuple[License, ...]:
    named = front.get("license")
    names = [_text(name) for name in (named if isinstance(named, list) else [named])[:20]]
    found = []
    for name in dict.fromkeys(filter(None, names)):
        if name.lower() in ("other", "unknown"):
            name = _text(front.get("license_name")) or name
        spdx = _SPDX.get(name.lower())
        found.append(License(id=spdx) if spdx else License(name=name))
    return tuple(found)


def _text(value: Json) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not value.isprintable():
        return ""
    return value.strip()
