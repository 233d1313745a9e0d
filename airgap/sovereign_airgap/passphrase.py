# SPDX-License-Identifier: Apache-2.0
"""Passphrases of private keys: from a file, or asked for where somebody sits in front of a terminal."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sovereign_airgap.errors import KeyUnusable
from sovereign_airgap.signing.keys import has_passphrase

_BYTES = 1024


def read_passphrase(path: Path) -> bytes:
    """The one line of a file, without its end; raises KeyUnusable."""
    try:
        with path.open("rb") as stream:
            content = stream.read(_BYTES + 1)
    except OSError as error:
        raise KeyUnusable(
            f"Expected a passphrase in {path}, which cannot be read: {error.strerror}."
        ) from error
    line = content.removesuffix(b"\n").removesuffix(b"\r")
    if not line or len(content) > _BYTES or b"\n" in line:
        raise KeyUnusable(f"Expected a passphrase of one line and at most {_BYTES} bytes in {path}.")
    return line


def ask_passphrase(question: str, twice: bool = False) -> bytes:
    """Asks the person at the terminal; raises KeyUnusable where there is none, or no answer."""
    if not sys.stdin.isatty():
        raise KeyUnusable("A passphrase is needed and nobody is there to ask; give --passphrase-file.")
    try:
        answer: str = click.prompt(question, hide_input=True, confirmation_prompt=twice, err=True)
    except click.Abort as error:  # Ctrl-D
        raise KeyUnusable("A passphrase is needed and none was given; give --passphrase-file.") from error
    return answer.encode("utf-8")


def passphrase_of(key: Path, file: Path | None) -> bytes | None:
    """What unlocks a private key: the file's line, the person's answer, or None where it has no lock."""
    if file is not None:
        return read_passphrase(file)
    return ask_passphrase(f"Passphrase of {key}") if has_passphrase(key) else None
