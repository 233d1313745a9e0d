# SPDX-License-Identifier: Apache-2.0
"""What all models of the API share: the naming convention and the bounded scalar types.

Every string has a bound because the API server estimates the cost of a validation rule from the bounds.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints
from pydantic.alias_generators import to_camel

Glob = Annotated[str, StringConstraints(min_length=1, max_length=256)]
LabelValue = Annotated[str, StringConstraints(max_length=63)]
ShortText = Annotated[str, StringConstraints(max_length=1024)]
SecretName = Annotated[str, StringConstraints(max_length=253)]
# A Kubernetes quantity in one of the forms people write: 500m, 2, 16Gi.
Quantity = Annotated[str, StringConstraints(max_length=20, pattern=r"^[0-9]+(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]


class ApiModel(BaseModel):
    """snake_case in Python, camelCase on the wire; unknown fields are dropped, as the API server does."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")
