# SPDX-License-Identifier: Apache-2.0
"""Copies `crds/*.yaml` into the chart sovereign-crds: `python -m dev.chart_crds [--check]`.

A copy and not a link, because packaged charts, Argo CD and Flux all treat links differently. The only
difference between the two is the annotation that keeps the definition, and with it all models, on uninstall.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
CRDS = ROOT / "crds"
CHART_FILES = ROOT / "charts" / "sovereign-crds" / "files"
KEEP = {"helm.sh/resource-policy": "keep"}
HEADER = "# SPDX-License-Identifier: Apache-2.0\n# Generated from crds/ by `make generate`. Do not edit.\n"


def chart_copy(text: str) -> str:
    """The CRD as the chart ships it: the same document with the keep annotation."""
    crd = yaml.safe_load(text)
    annotations = crd["metadata"].get("annotations", {})
    crd["metadata"]["annotations"] = dict(sorted({**annotations, **KEEP}.items()))
    body: str = yaml.safe_dump(crd, sort_keys=False, width=110, allow_unicode=True)
    return HEADER + body


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when a copy is out of date")
    check = parser.parse_args(arguments).check

    wanted = {path.name: chart_copy(path.read_text(encoding="utf-8")) for path in sorted(CRDS.glob("*.yaml"))}
    if not wanted:
        print(f"no CRD in {CRDS}: run `python -m sovereign_operator.crd` first", file=sys.stderr)
        return 1
    present = {path.name: path.read_text(encoding="utf-8") for path in sorted(CHART_FILES.glob("*.yaml"))}
    stale = sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))
    if check:
        for name in stale:
            print(f"{CHART_FILES / name} is out of date: run `make generate`", file=sys.stderr)
        return 1 if stale else 0
    CHART_FILES.mkdir(parents=True, exist_ok=True)
    for name in stale:
        target = CHART_FILES / name
        if name in wanted:
            target.write_text(wanted[name], encoding="utf-8")
        else:
            target.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
