# SPDX-License-Identifier: Apache-2.0
"""Kubernetes quantities in the one spelling that the API server writes back.

`1000m` comes back as `1` and `1024Mi` as `1Gi`; anything else than that spelling would look like somebody's
change.
"""

from __future__ import annotations

from typing import Final

_BINARY: Final = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_FACTORS: Final[dict[str, int]] = {"k": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4} | {
    unit: 1024**power for power, unit in enumerate(_BINARY) if unit
}


def cores(millis: int) -> str:
    """A CPU quantity from thousandths of a core."""
    return f"{millis}m" if millis % 1000 else str(millis // 1000)


def size(count: int) -> str:
    """A memory or storage quantity from bytes: the largest binary unit that leaves a whole number."""
    power = 0
    while count and count % 1024 == 0 and power < len(_BINARY) - 1:
        count //= 1024
        power += 1
    return f"{count}{_BINARY[power]}"


def parse_cores(text: str) -> int:
    """Thousandths of a core. Raises ValueError on what is no CPU quantity."""
    return int(text[:-1]) if text.endswith("m") else int(text) * 1000


def parse_size(text: str) -> int:
    """Bytes. Raises ValueError on what is no whole number with a known unit."""
    for unit in sorted(_FACTORS, key=len, reverse=True):
        if text.endswith(unit):
            return int(text[: -len(unit)]) * _FACTORS[unit]
    return int(text)


def rounded_up(count: int, step: int) -> int:
    """The next multiple of `step`, so that a byte more or less does not change a pod."""
    return -(-count // step) * step
