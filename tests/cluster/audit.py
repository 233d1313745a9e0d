# SPDX-License-Identifier: Apache-2.0
"""Reads the embedded API server's audit log: who asked for what, and was it allowed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Request:
    user: str
    verb: str
    resource: str
    subresource: str
    namespace: str
    name: str
    code: int
    reason: str

    @property
    def writes(self) -> bool:
        return self.verb not in ("get", "list", "watch")


@dataclass
class AuditLog:
    """`since_mark` yields what was logged after the last `mark`."""

    path: Path
    offset: int = 0

    def mark(self) -> None:
        self.offset = self.path.stat().st_size

    def since_mark(self, user: str) -> Iterator[Request]:
        with self.path.open("rb") as log:
            log.seek(self.offset)
            for line in log:
                if not line.endswith(b"\n"):
                    return  # the server is still writing this one
                event = json.loads(line)
                if event["stage"] == "ResponseComplete" and event["user"]["username"] == user:
                    yield _request(event)


def _request(event: dict[str, object]) -> Request:
    target = event.get("objectRef") or {}
    status = event.get("responseStatus") or {}
    user = event["user"]
    assert isinstance(target, dict) and isinstance(status, dict) and isinstance(user, dict)
    return Request(
        user=user["username"],
        verb=str(event["verb"]),
        resource=target.get("resource", ""),
        subresource=target.get("subresource", ""),
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        code=status.get("code", 0),
        reason=status.get("message", ""),
    )
