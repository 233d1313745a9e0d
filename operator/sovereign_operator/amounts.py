# SPDX-License-Identifier: Apache-2.0
"""Amounts in sentences for people. What machines read is spelt by `desired/quantity.py`."""

from __future__ import annotations


def in_bytes(count: float) -> str:
    """A number of bytes in the unit that reads best: 512 B, 1.5 GiB."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
