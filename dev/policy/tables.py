# SPDX-License-Identifier: Apache-2.0
"""The agent's table in the kernel, replaced so that no packet passes between the old rules and the new.

nft deletes and makes a table in one transaction, and still a packet that is on its way at that moment can
meet the new chains before they count and the old ones after they did: it meets no rule at all. In a flood,
with one replacement after the other, it was one packet of 50,000. So there are two tables by turns: the new
one is in force beside the old one before the old one goes, and what both are asked about passes only if both
say so.
"""

from __future__ import annotations

from typing import Protocol


class Nft(Protocol):
    """`nft` with these arguments and this input; its output. Raises CalledProcessError if it refuses."""

    def __call__(self, *arguments: str, stdin: str = "") -> str: ...


class Tables:
    """Two names, one of them in force but for the moment of a replacement, also after a crash in it."""

    def __init__(self, names: tuple[str, str], nft: Nft) -> None:
        self._names, self._nft = names, nft

    def replace(self, rules: str) -> None:
        """Put a table with these rules (from its opening brace to its closing one) in the other's place."""
        first, second = self._names
        # Asked anew each time: a table that somebody removed must not be taken for the one in force. Where
        # both are there, the second stays in force while the first is made again.
        new, old = (second, first) if self.present() == [first] else (first, second)
        self._nft("-f", "-", stdin=f"{_gone(new)}table inet {new} {rules}")
        self._nft("-f", "-", stdin=_gone(old))

    def present(self) -> list[str]:
        """The names that the kernel has a table for."""
        listed = self._nft("list", "tables", "inet").splitlines()
        return [name for name in self._names if f"table inet {name}" in listed]


def _gone(table: str) -> str:
    """Delete it if it is there: nft refuses to delete what is not."""
    return f"table inet {table} {{}}\ndelete table inet {table}\n"
