# SPDX-License-Identifier: Apache-2.0
"""How to reach one registry: scheme, trust, login. Shared by every verb."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sovereign_airgap.pace import Pace
from sovereign_airgap.reference import OciReference
from sovereign_airgap.wire import Wire, tls_context

if TYPE_CHECKING:
    from sovereign_airgap.registry import Registry


@dataclass(frozen=True, slots=True)
class Access:
    """`ca` replaces the system's authorities; `docker_config` replaces docker's own file."""

    plain_http: bool = False
    ca: Path | None = None
    docker_config: Path | None = None

    @contextmanager
    def registry(self, reference: OciReference, pace: Pace, push: bool) -> Iterator[Registry]:
        """Opens the repository that the reference names; nothing is sent yet."""
        # Late: the HTTP library takes long to import, and verbs that work on a disk need none of it.
        from sovereign_airgap.auth import docker_config_path, read_docker_config
        from sovereign_airgap.registry import Registry

        scheme = "http" if self.plain_http else "https"
        login = read_docker_config(docker_config_path(self.docker_config), reference.host)
        wire = Wire(pace, tls_context(self.ca), "--ca")
        try:
            base = f"{scheme}://{reference.host}"
            with Registry(base, reference.repository, wire, pace, login, push) as registry:
                yield registry
        finally:
            wire.close()
