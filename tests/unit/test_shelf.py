# SPDX-License-Identifier: Apache-2.0
"""Which unpacked images the next embedded cluster gets."""

from __future__ import annotations

from dev.cluster.shelf import Image, kept

OLD, NEW, OTHER, PAUSE = (f"sha256:{digit * 64}" for digit in "1234")
IMAGES = [
    Image(f"127.0.0.1:1001/serving-cpu@{OLD}", OLD),
    Image("sha256:aa", OLD),
    Image(f"127.0.0.1:2002/serving-cpu@{NEW}", NEW),
    Image("sha256:bb", NEW),
    Image(f"127.0.0.1:1001/operator@{OTHER}", OTHER),
    Image("sovereign.dev/embedded/pause:1", PAUSE),
]


def test_an_image_that_a_newer_one_replaced_is_not_kept() -> None:
    used = {f"127.0.0.1:2002/serving-cpu@{NEW}", "sovereign.dev/embedded/pause:1"}
    assert kept(IMAGES, used) == {NEW, OTHER, PAUSE}


def test_what_was_not_used_this_time_is_kept() -> None:
    assert kept(IMAGES, set()) == {OLD, NEW, OTHER, PAUSE}
