# SPDX-License-Identifier: Apache-2.0
"""What vLLM wants to know about a model's class, found out while the image was built.

Otherwise every rank, at every start, imports vLLM once more in a process that only looks at the class.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

# Absent in images where nobody asked vLLM beforehand.
IN_THE_IMAGE = Path("/opt/sovereign/share/vllm/modelinfos")


def hand_over(found: Path, cache: Path) -> None:
    """Puts the files where vLLM looks, in `modelinfos` below its cache.

    vLLM compares the hash in each with the module that it would import and believes nothing that is stale.
    What cannot be copied is found out again: slower, and no reason not to serve.
    """
    with contextlib.suppress(OSError):
        shutil.copytree(found, cache / "modelinfos", dirs_exist_ok=True)
