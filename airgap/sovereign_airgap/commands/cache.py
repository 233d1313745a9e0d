# SPDX-License-Identifier: Apache-2.0
"""The group `cache`: a node's own copies of the weights. Its verbs stand in files of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sovereign_airgap.errors import InvalidReference


@click.group("cache")
def cache_group() -> None:
    """Keeps models on a node, so that no byte comes twice: checked, shared by pods, read-only."""


class TenantType(click.ParamType[str]):
    """The name of a namespace."""

    name = "namespace"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> str:
        from sovereign_airgap.cache.layout import require_tenant

        try:
            require_tenant(str(value))
        except InvalidReference as error:
            self.fail(str(error), param, context)
        return str(value)


TENANT = TenantType()

root_option = click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="The node's cache.",
)
