# SPDX-License-Identifier: Apache-2.0
"""Bundles that somebody has signed, and what a verification finds in them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sovereign_airgap.bundle import signatures
from sovereign_airgap.bundle.opening import open_bundle
from sovereign_airgap.bundle.report import Report
from sovereign_airgap.bundle.verify import examine
from sovereign_airgap.errors import Refusal
from sovereign_airgap.progress import Progress
from sovereign_airgap.signing.keys import PrivateKey, PublicKey

CREATED = datetime(2026, 1, 1, tzinfo=UTC)


def signed(bundle: Path) -> PublicKey:
    """Signs the bundle with a key made for it."""
    private = PrivateKey.generate("ed25519")
    signatures.sign(bundle, private, CREATED)
    return private.public


def examined(path: Path, keys: Sequence[PublicKey] = (), **options: Any) -> Report:
    return examine(open_bundle(path), keys, 1, Progress(), **options)


def defects_of(path: Path, keys: Sequence[PublicKey] = ()) -> dict[str, str]:
    return {defect.path: defect.what for defect in examined(path, keys).defects}


def the_largest_shard(bundle: Path) -> Path:
    return max((bundle / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)


def found_in(path: Path, *keys: PublicKey) -> dict[str, tuple[str, str]]:
    """What is wrong, by path: the reason and the sentence."""
    report = examine(open_bundle(path), keys, 1, Progress())
    if report.defects:
        with pytest.raises(Refusal) as refused:
            _ = report.verified
        assert refused.value.exit_code == 3
        assert len(str(refused.value)) < 300 + 1000 * len(report.defects)
    return {defect.path: (defect.reason, defect.what) for defect in report.defects}
