# SPDX-License-Identifier: Apache-2.0
"""Reads the embedded API server's audit log: who asked for what, in which order, and was it allowed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Request:
    """One answered request. `resource` carries the subresource: `pods/log`."""

    verb: str
    resource: str
    namespace: str
    name: str
    code: int
    message: str

    @property
    def writes(self) -> bool:
        return self.verb not in ("get", "list", "watch")

    @property
    def created(self) -> bool:
        return self.verb in ("create", "patch") and self.code == 201


class AuditLog:
    """`by(user)` yields that user's requests for objects, oldest first, since the last `mark`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0

    def mark(self) -> None:
        self.offset = self.path.stat().st_size

    def by(self, user: str) -> Iterator[Request]:
        with self.path.open("rb") as log:
            log.seek(self.offset)
            for line in log:
                if not line.endswith(b"\n"):
                    return  # the server is still writing this one
                event = json.loads(line)
                complete = event["stage"] in ("ResponseComplete", "ResponseStarted")
                if complete and event["user"]["username"] == user and "objectRef" in event:
                    yield _request(event)


def _request(event: dict[str, Any]) -> Request:
    target, answer = event["objectRef"], event.get("responseStatus", {})
    subresource = f"/{target['subresource']}" if target.get("subresource") else ""
    return Request(
        verb=event["verb"],
        resource=target.get("resource", "") + subresource,
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        code=answer.get("code", 0),
        message=answer.get("message", ""),
    )
