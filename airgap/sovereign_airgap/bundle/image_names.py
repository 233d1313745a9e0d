# SPDX-License-Identifier: Apache-2.0
"""Which image of a bundle a chart or a manifest means, and what it is called behind the gap. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import InvalidReference
from sovereign_airgap.reference import OciReference

_DEFAULT_HOST = "docker.io"


@dataclass(frozen=True, slots=True)
class RelocatedImage:
    """An image: where it came from, with the tag and the digest found there, and what it is now."""

    origin: OciReference
    now: OciReference

    def is_meant_by(self, wanted: OciReference) -> bool:
        """Whether a reference, complete or without tag and digest, names this image."""
        if (wanted.host, wanted.repository) != (self.origin.host, self.origin.repository):
            return False
        if wanted.digest is not None:
            # The index that was found there, or the one platform's manifest that was taken of it.
            return wanted.digest in (self.origin.digest, self.now.digest)
        return wanted.tag is None or wanted.tag == self.origin.tag


@dataclass(frozen=True, slots=True)
class Images:
    """All images of a bundle."""

    images: tuple[RelocatedImage, ...]

    @classmethod
    def of(cls, images: Iterable[RelocatedImage]) -> Self:
        return cls(tuple(sorted(images, key=lambda image: image.origin.name)))

    def find(self, text: str) -> RelocatedImage | None:
        """The one image that `text` names; None where it names none, or could mean several."""
        wanted = image_reference(text)
        if wanted is None:
            return None
        found = [image for image in self.images if image.is_meant_by(wanted)]
        return found[0] if len(found) == 1 else None

    def named(self, role: str) -> RelocatedImage | None:
        """Our image for a role, as in `sovereign-operator` or `sovereign/operator`; None unless it is one."""
        ending = re.compile(rf"(?:^|/)sovereign[-/]{re.escape(role)}")
        found = []
        for image in self.images:
            match = ending.search(image.origin.repository)
            if match is not None and match.end() == len(image.origin.repository):
                found.append(image)
        return found[0] if len(found) == 1 else None


def image_reference(text: str) -> OciReference | None:
    """Reads an image as container tools write it, `busybox:1.36` included; None where it is none."""
    host, slash, rest = text.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        rest = text if slash else f"library/{text}"
        host = _DEFAULT_HOST
    try:
        found = OciReference.parse(f"{host}/{rest}")
    except InvalidReference:
        return None
    return found if found.repository else None


def pinned(image: RelocatedImage) -> str:
    """HOST/REPOSITORY@sha256:…"""
    return image.now.name


def tag_and_digest(image: RelocatedImage) -> str:
    """What stands after `repository:` in charts that know no digests: runtimes take the digest alone."""
    digest: Digest | None = image.now.digest
    return f"{image.origin.tag or 'bundle'}@{digest}"
