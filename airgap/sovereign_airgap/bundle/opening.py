# SPDX-License-Identifier: Apache-2.0
"""From a path that a user gives to the bundle that lies there, whichever of its two forms it has."""

from __future__ import annotations

import os
from pathlib import Path

from sovereign_airgap.bundle.layout import INDEX, OCI_LAYOUT, BundleReader, Directory
from sovereign_airgap.bundle.parts import LIST_SUFFIX, Parts
from sovereign_airgap.disk import explained
from sovereign_airgap.errors import BundleDefective


def open_bundle(path: Path) -> BundleReader:
    """The bundle at `path`: its directory, a list of parts, or a folder with exactly one such list.

    Raises BundleDefective where there is none, or more than one.
    """
    if path.name.endswith(LIST_SUFFIX):
        return Parts(path)
    if ".part-" in path.name and not path.is_dir():
        raise BundleDefective(f"Expected the list {path.stem}{LIST_SUFFIX}, found the part {path.name}.")
    directory = Directory(path)
    # Links, too, and one of them is enough: what is wrong with the other is for its verification to name.
    if os.path.lexists(path / INDEX) or os.path.lexists(path / OCI_LAYOUT):
        return directory
    with explained(path):
        lists = sorted(found.name for found in path.iterdir() if found.name.endswith(LIST_SUFFIX))
    if len(lists) == 1:
        return Parts(path / lists[0])
    if lists:
        raise BundleDefective(
            f"Expected one bundle in {path}, found {len(lists)}: name one, as in {path / lists[0]}."
        )
    raise BundleDefective(
        f"Expected a bundle in {path}, found neither {INDEX} nor a file *{LIST_SUFFIX}; an unfinished one is "
        "finished by the command that began it."
    )
