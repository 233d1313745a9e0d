# SPDX-License-Identifier: Apache-2.0
"""What the image knows about model classes reaches vLLM's cache."""

from __future__ import annotations

from pathlib import Path

from sovereign_serving import model_classes


def test_what_the_image_knows_is_handed_over_and_what_is_there_stays(tmp_path: Path) -> None:
    image, cache = tmp_path / "image", tmp_path / "cache"
    image.mkdir()
    (image / "mixtral.json").write_text("{}")
    (cache / "modelinfos").mkdir(parents=True)
    (cache / "modelinfos" / "other.json").write_text("{}")
    model_classes.hand_over(image, cache)
    model_classes.hand_over(image, cache)
    assert sorted(path.name for path in (cache / "modelinfos").iterdir()) == ["mixtral.json", "other.json"]


def test_an_image_that_knows_nothing_is_no_error(tmp_path: Path) -> None:
    model_classes.hand_over(tmp_path / "absent", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
