# SPDX-License-Identifier: Apache-2.0
"""What a registry lists: its repositories and their tags, page after page, bounded."""

from __future__ import annotations

import re
from http import HTTPStatus

from sovereign_airgap import strict_json
from sovereign_airgap.errors import MalformedManifest
from sovereign_airgap.reference import is_repository, is_tag
from sovereign_airgap.registry import Registry

PAGE_ENTRIES = 1000
MAX_PAGES = 1000
_PAGE_BYTES = 1024 * 1024
_NEXT = re.compile(r'<([^<>]+)>\s*;\s*rel="?next"?')


def tags(registry: Registry) -> tuple[str, ...]:
    """All tags of the repository, sorted; none where there is no such repository."""
    return _all(registry, registry.url(f"tags/list?n={PAGE_ENTRIES}"), "tags")


def repositories(registry: Registry) -> tuple[str, ...]:
    """All repositories of the registry, sorted."""
    return _all(registry, f"{registry.base}/v2/_catalog?n={PAGE_ENTRIES}", "repositories")


def _all(registry: Registry, url: str, key: str) -> tuple[str, ...]:
    found: set[str] = set()
    for _ in range(MAX_PAGES):
        reply = registry.ask("GET", url, limit=_PAGE_BYTES)
        if reply.status == HTTPStatus.NOT_FOUND and key == "tags":
            break
        if reply.status != HTTPStatus.OK:
            raise registry.unexpected(f"GET of the {key}", reply.status, reply.body)
        found.update(_names(reply.body, key))
        following = _NEXT.search(reply.headers.get("link", ""))
        if following is None:
            break
        url = registry.locate(following[1], url)
    else:
        raise MalformedManifest(f"Expected at most {MAX_PAGES} pages of {key}, found more.")
    return tuple(sorted(found))


def _names(body: bytes, key: str) -> list[str]:
    try:
        names = strict_json.load_object(body).get(key)
    except strict_json.NotStrict as error:
        raise MalformedManifest(f"Expected a list of {key}, found: {str(error)[:200]}.") from error
    is_name = is_tag if key == "tags" else is_repository
    # `null` is how Go writes a list of nothing.
    wanted = [] if names is None else names
    if not isinstance(wanted, list):
        raise MalformedManifest(f"Expected a list of {key}, found {type(names).__name__}.")
    # A name outside the grammar cannot be asked for, so it is nobody's that we could harm or need.
    return [name for name in wanted if isinstance(name, str) and is_name(name)]
