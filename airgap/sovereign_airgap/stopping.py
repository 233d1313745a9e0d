# SPDX-License-Identifier: Apache-2.0
"""Which of several errors is the one to report when one failure has ended everything else."""

from __future__ import annotations

from collections.abc import Iterable

from sovereign_airgap.errors import Interrupted, SovereignError


def first_cause(errors: Iterable[BaseException | None]) -> BaseException:
    """The error that ended the others: not the Interrupted that they got because of it."""
    found = [error for error in errors if error is not None]

    def rank(error: BaseException) -> int:
        if isinstance(error, Interrupted):
            return 2
        return 0 if isinstance(error, SovereignError) else 1

    return min(found, key=rank)
