# SPDX-License-Identifier: Apache-2.0
"""Deletes from a CPU serving environment what no CPU process loads; runs inside the build.

torch from the package index brings the CUDA libraries. Those that libtorch links must stay; the others are
found by importing torch and vLLM and looking at what the process mapped. vLLM switches Triton off on CPUs.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

SITE = Path(sysconfig.get_path("purelib"))
IMPORT = "import torch, vllm, vllm._C; print(open('/proc/self/maps').read())"


def mapped_files() -> set[Path]:
    environment = {
        **os.environ,
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    maps = subprocess.run(
        [sys.executable, "-c", IMPORT], check=True, capture_output=True, text=True, env=environment
    )
    return {
        Path(line.split(maxsplit=5)[5]).resolve()
        for line in maps.stdout.splitlines()
        if len(line.split(maxsplit=5)) == 6
    }


def main() -> None:
    for folder in ("triton", "torch/include"):
        shutil.rmtree(SITE / folder, ignore_errors=True)
    for compiler in (SITE / "torch/bin").glob("protoc*"):
        compiler.unlink()
    keep = mapped_files()
    if not any("libtorch_cpu" in path.name for path in keep):
        sys.exit("diet: torch did not map its own libraries; /proc is not readable here, nothing is deleted")
    freed = 0
    for library in sorted((SITE / "nvidia").rglob("*.so*")):
        if library.is_file() and library.resolve() not in keep:
            freed += library.stat().st_size
            library.unlink()
    # What is left must still start: a library that is loaded by name only would show here.
    mapped_files()
    sys.stdout.write(f"diet: {freed >> 20} MiB of CUDA libraries that a CPU process does not load\n")


if __name__ == "__main__":
    main()
