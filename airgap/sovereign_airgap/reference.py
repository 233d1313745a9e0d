# SPDX-License-Identifier: Apache-2.0
"""References: where a model comes from and where its artifact lives.

Pure values with one parser each. The operator imports them, so nothing here touches a network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Self

from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import InvalidReference, NameRequired

# OCI distribution specification 1.1: names and tags.
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_REPOSITORY_MAX = 255
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,95})/[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,95})")

MODEL_PREFIX = "models/"
PUBLIC_ENDPOINT = "https://huggingface.co"


def is_repository(name: str) -> bool:
    """Whether a registry accepts this name."""
    return len(name) <= _REPOSITORY_MAX and _REPOSITORY.fullmatch(name) is not None


def is_tag(tag: str) -> bool:
    return _TAG.fullmatch(tag) is not None


@dataclass(frozen=True, slots=True)
class HubReference:
    """A pinned commit of a model repository: `hf://org/name@<40-hex commit>`."""

    repo: str
    revision: str

    def __post_init__(self) -> None:
        if not _HUB_ID.fullmatch(self.repo) or ".." in self.repo or "--" in self.repo:
            raise InvalidReference(f"Expected a model repository as in org/name, found {self.repo[:200]!r}.")
        if not _COMMIT.fullmatch(self.revision):
            raise InvalidReference(
                f"Expected a commit of 40 lower-case hex digits, found {self.revision[:100]!r}; branches and "
                "tags can move, so name the commit."
            )

    def __str__(self) -> str:
        return f"hf://{self.repo}@{self.revision}"

    @classmethod
    def parse(cls, text: str) -> Self:
        scheme, found, rest = text.partition("://")
        repo, at, revision = rest.partition("@")
        if scheme != "hf" or not found or not at:
            raise InvalidReference(f"Expected hf://org/name@<40-hex commit>, found {text[:200]!r}.")
        return cls(repo, revision)

    def default_repository(self) -> str:
        """The repository that a mirror uses when the user names none: `models/` + lower case of the id."""
        name = MODEL_PREFIX + self.repo.lower()
        if not is_repository(name):
            raise NameRequired(
                f"{self.repo!r} in lower case is not a repository name that registries accept; name one, as "
                "in oci://HOST/models/my-name."
            )
        return name


@dataclass(frozen=True, slots=True)
class OciReference:
    """A place in a registry: `oci://HOST[:PORT]/REPOSITORY[:TAG][@sha256:…]`.

    `repository` is empty where only the host was given (mirror targets may leave it out).
    """

    host: str
    repository: str = ""
    tag: str | None = None
    digest: Digest | None = None

    def __post_init__(self) -> None:
        match = _HOST.fullmatch(self.host)
        if match is None or (match.group(1) is not None and not 0 < int(match.group(1)) < 65536):
            raise InvalidReference(f"Expected a registry as in host or host:port, found {self.host[:200]!r}.")
        if self.repository and not is_repository(self.repository):
            raise InvalidReference(
                f"Expected a repository name in lower case as in models/org/name, found "
                f"{self.repository[:300]!r}."
            )
        if not self.repository and (self.tag is not None or self.digest is not None):
            raise InvalidReference("A tag or digest needs a repository before it.")
        if self.tag is not None and not is_tag(self.tag):
            raise InvalidReference(
                f"Expected a tag (letters, digits, '.', '_', '-'), found {self.tag[:200]!r}."
            )

    def __str__(self) -> str:
        return f"oci://{self.name}"

    @property
    def name(self) -> str:
        """The reference without a scheme, as container tools write it."""
        text = self.host
        if self.repository:
            text += f"/{self.repository}"
        if self.tag is not None:
            text += f":{self.tag}"
        if self.digest is not None:
            text += f"@{self.digest}"
        return text

    @property
    def target(self) -> str:
        """What stands after `/manifests/`: the digest where there is one, else the tag."""
        if self.digest is not None:
            return str(self.digest)
        if self.tag is not None:
            return self.tag
        raise InvalidReference(f"{self} names neither a tag nor a digest.")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a reference with or without `oci://`; the first path element is always the host."""
        rest = text.removeprefix("oci://")
        if "://" in rest:
            raise InvalidReference(f"Expected oci://HOST/REPOSITORY, found {text[:200]!r}.")
        host, _, path = rest.partition("/")
        repository, tag, digest = _split(path)
        return cls(host, repository, tag, digest)

    def with_repository(self, repository: str) -> Self:
        return replace(self, repository=repository)

    def with_digest(self, digest: Digest) -> Self:
        return replace(self, tag=None, digest=digest)


@dataclass(frozen=True, slots=True)
class ArtifactReference:
    """An artifact in whichever registry is configured: `models/org/name@sha256:…` (always by digest)."""

    repository: str
    digest: Digest

    def __post_init__(self) -> None:
        if not is_repository(self.repository):
            raise InvalidReference(
                f"Expected a repository name in lower case as in models/org/name, found "
                f"{self.repository[:300]!r}."
            )

    def __str__(self) -> str:
        return f"{self.repository}@{self.digest}"

    @classmethod
    def parse(cls, text: str) -> Self:
        repository, tag, digest = _split(text)
        if digest is None or tag is not None:
            raise InvalidReference(
                f"Expected an artifact as in models/org/name@sha256:…, found {text[:300]!r}."
            )
        return cls(repository, digest)

    def at(self, host: str) -> OciReference:
        return OciReference(host, self.repository, digest=self.digest)


def _split(path: str) -> tuple[str, str | None, Digest | None]:
    name, at, digest_text = path.partition("@")
    digest = Digest.parse(digest_text) if at else None
    repository, colon, tag = name.partition(":")
    return repository, (tag if colon else None), digest
