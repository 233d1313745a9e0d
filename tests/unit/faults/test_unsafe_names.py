# SPDX-License-Identifier: Apache-2.0
"""No file name from a hub or a manifest leads out of the target directory, or to a file it does not name."""

from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_airgap.errors import UnsafeFileName
from sovereign_airgap.names import require_safe, require_safe_set

UNSAFE = {
    "empty": "",
    "parent": "../model.safetensors",
    "parent inside": "a/../../b",
    "parent that stays inside": "a/../b",
    "parent at the end": "a/..",
    "only the parent": "..",
    "here": ".",
    "here inside": "a/./b",
    "absolute": "/etc/passwd",
    "two slashes": "a//b",
    "slash at the end": "a/",
    "backslash": "..\\..\\evil",
    "drive": "C:evil.json",
    "stream": "config.json:stream",
    "NUL": "config.json\0.safetensors",
    "newline": "config\n.json",
    "escape": "\x1b[2Jconfig.json",
    "bidi override": "config\u202enosj.safetensors",
    "zero width": "con\u200bfig.json",
    "surrogate": "\udcff.json",
    "device": "nul",
    "device with an extension": "a/CON.json",
    "dot at the end": "config.json.",
    "space at the end": "config.json ",
    "long component": "a" * 256,
    "long path": "a/" * 200 + "b",
    "wildcard": "*.safetensors",
    "ours": ".sovereign-partial",
    "our marker": "sub/.complete",
}


@pytest.mark.parametrize("name", UNSAFE)
def test_an_unsafe_name_is_refused_and_shown_harmlessly(name: str) -> None:
    with pytest.raises(UnsafeFileName) as refused:
        require_safe(UNSAFE[name])

    assert refused.value.exit_code == 3
    assert str(refused.value).isascii(), "a name must not reach a terminal as it is"
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1000


SAFE = [
    "config.json",
    "a/b/c.safetensors",
    ".gitattributes",
    "..a",
    "a..b",
    "größe.json",
    "a b.txt",
    "con-fig",
]


@pytest.mark.parametrize("name", SAFE)
def test_a_plain_name_passes(name: str) -> None:
    require_safe(name)


@pytest.mark.parametrize(
    "names",
    [
        ["Config.json", "config.json"],
        ["stra\u00dfe", "STRASSE"],
        ["caf\u00e9", "cafe\u0301"],
        ["a", "a/b"],
        ["A/x", "a"],
        ["same", "same"],
    ],
)
def test_two_names_for_one_file_are_refused(names: list[str]) -> None:
    for order in (names, names[::-1]):
        with pytest.raises(UnsafeFileName):
            require_safe_set(order)


@given(st.text(alphabet=st.one_of(st.sampled_from("ab./\\:~ \0C"), st.characters()), max_size=30))
def test_what_passes_stays_inside_on_every_system(name: str) -> None:
    try:
        require_safe(name)
    except UnsafeFileName:
        return
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    assert posix.as_posix() == windows.as_posix() == name
    for path in (posix, windows):
        assert not path.is_absolute()
        assert not path.drive
        assert ".." not in path.parts
    name.encode("utf-8")
