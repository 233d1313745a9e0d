# SPDX-License-Identifier: Apache-2.0
"""What a verb loads before its first byte: for small bundles that is most of its time."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("verb", ["bundle.verify", "bundle.split", "cache.hold", "cache.scrub"])
def test_verbs_on_a_disk_start_without_the_libraries_of_network_and_terminal(verb: str) -> None:
    script = f"import sys, sovereign_airgap.cli, sovereign_airgap.{verb}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"httpx2", "huggingface_hub", "rich"} & set(loaded.stdout.split())
