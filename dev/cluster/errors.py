# SPDX-License-Identifier: Apache-2.0
"""What the embedded cluster says when it cannot do as asked."""

from __future__ import annotations


class ClusterError(RuntimeError):
    """One sentence for the user: what is wrong and what to do about it."""
