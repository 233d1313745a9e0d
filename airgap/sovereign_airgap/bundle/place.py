# SPDX-License-Identifier: Apache-2.0
"""A place in a registry that bundles are loaded into: a host, and a prefix before every repository."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from sovereign_airgap.access import Access
from sovereign_airgap.auth import docker_config_path, read_docker_config
from sovereign_airgap.pace import Pace
from sovereign_airgap.reference import OciReference
from sovereign_airgap.registry import Registry
from sovereign_airgap.wire import Wire, tls_context


class Place:
    """Opens the repositories of one place on demand; all share their connections. Threads may share it."""

    def __init__(
        self, target: OciReference, access: Access, pace: Pace, wire: Wire, stack: ExitStack, deletes: bool
    ) -> None:
        self.host = target.host
        self.prefix = target.repository
        self.pace = pace
        self._wire = wire
        self._base = f"{'http' if access.plain_http else 'https'}://{target.host}"
        self._login = read_docker_config(docker_config_path(access.docker_config), target.host)
        self._stack = stack
        self._deletes = deletes
        self._open: dict[str, Registry] = {}
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return f"oci://{self.host}" + (f"/{self.prefix}" if self.prefix else "")

    def full_name(self, repository: str) -> str:
        """The name of a bundle's repository here; raises InvalidReference where it is too long."""
        name = f"{self.prefix}/{repository}" if self.prefix else repository
        return OciReference(self.host, name).repository

    def repository(self, repository: str) -> Registry:
        """The bundle's repository, with the right to push, and to delete where this place asks for it."""
        name = self.full_name(repository)
        with self._lock:
            found = self._open.get(name)
            if found is None:
                made = Registry(self._base, name, self._wire, self.pace, self._login, push=True)
                if self._deletes:
                    made.scope += ",delete"
                found = self._open[name] = self._stack.enter_context(made)
            return found


@contextmanager
def opened(target: OciReference, access: Access, pace: Pace, deletes: bool = False) -> Iterator[Place]:
    """A place while the block lasts; nothing is sent yet."""
    with ExitStack() as stack:
        wire = Wire(pace, tls_context(access.ca), "--ca")
        stack.callback(wire.close)
        yield Place(target, access, pace, wire, stack, deletes)
