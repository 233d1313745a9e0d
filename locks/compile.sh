#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Rewrites every lock file. Run from the repository root: uv reads the overrides in [tool.uv] from the
# working directory only. Without --python-version, --universal would start at the running interpreter.
set -eu
uv=${UV:-.venv/bin/uv}
compile() { out=$1; shift; "$uv" pip compile "$@" --universal --python-version 3.11 --generate-hashes --no-header --quiet -o "locks/$out.txt"; }
for extra in operator airgap serving serving-cpu dev; do compile "$extra" pyproject.toml --extra "$extra"; done
compile build locks/build.in
compile uv locks/uv.in
compile go locks/go.in
compile checkov locks/checkov.in
