# SPDX-License-Identifier: Apache-2.0
"""Kubernetes quantities, as far as the stand-in reads them."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal

_SUFFIXES = {
    "m": Decimal("0.001"),
    "": Decimal(1),
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate("kMGTPE", start=1)},
    **{f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", start=1)},
}


def whole(quantity: str | int) -> int:
    """The quantity as a whole number, rounded up: 200m is 1, 2Gi is 2147483648."""
    text = str(quantity)
    number = text.rstrip("kKMGTPEim")
    return int((Decimal(number) * _SUFFIXES[text[len(number) :]]).to_integral_value(ROUND_CEILING))
