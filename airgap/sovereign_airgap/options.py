# SPDX-License-Identifier: Apache-2.0
"""Options and arguments that several verbs take, each with one meaning everywhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from sovereign_airgap.access import Access
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import InvalidReference
from sovereign_airgap.pace import Patience
from sovereign_airgap.reference import HubReference, OciReference

_SIZE = re.compile(r"([1-9][0-9]{0,14}) ?((?:[KMGT]i?)?B?)", re.IGNORECASE)

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class HubReferenceType(click.ParamType[HubReference]):
    """An argument `hf://org/name@COMMIT`."""

    name = "hf://org/name@commit"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> HubReference:
        try:
            return HubReference.parse(str(value))
        except InvalidReference as error:
            self.fail(str(error), param, context)


class OciReferenceType(click.ParamType[OciReference]):
    """An argument `oci://HOST/REPO[:TAG][@DIGEST]`."""

    name = "oci://host/repo"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> OciReference:
        try:
            return OciReference.parse(str(value))
        except InvalidReference as error:
            self.fail(str(error), param, context)


class DigestType(click.ParamType[Digest]):
    """A value `sha256:<64 hex digits>`."""

    name = "sha256:…"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Digest:
        if isinstance(value, Digest):
            return value
        try:
            return Digest.parse(str(value))
        except InvalidReference as error:
            self.fail(str(error), param, context)


class SignableType(click.ParamType[Path | OciReference]):
    """An argument that is a bundle's path or `oci://HOST/REPO@sha256:…`: a tag could move meanwhile."""

    name = "bundle|oci://host/repo@digest"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> Path | OciReference:
        if isinstance(value, Path | OciReference):
            return value
        if not str(value).startswith("oci://"):
            return Path(str(value))
        try:
            reference = OciReference.parse(str(value))
        except InvalidReference as error:
            self.fail(str(error), param, context)
        if reference.digest is None or reference.tag is not None:
            self.fail("an artifact is named by its digest, as in oci://HOST/REPO@sha256:…", param, context)
        return reference


class SizeType(click.ParamType[int]):
    """A number of bytes: 1048576, 1MiB (or 1M), 1MB; no fractions."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = _SIZE.fullmatch(str(value).strip())
        if found is None:
            self.fail(
                f"{str(value)[:40]!r} is no size; write it as in 4000MiB, 4GB or 4194304.", param, context
            )
        unit = found[2].upper()
        step = 1000 if unit.endswith("B") and not unit.endswith("IB") else 1024
        return int(found[1]) * (step ** " KMGT".index(unit[0]) if unit[:1].strip("B") else 1)


class AmountType(SizeType):
    """A size that may be 0."""

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> int:
        return 0 if str(value).strip() == "0" else super().convert(value, param, context)


SIZE = SizeType()
AMOUNT = AmountType()
DIGEST = DigestType()


def registry_options(command: Callable[..., None]) -> Callable[..., None]:
    """How to reach the registry and how long to wait for it: the command gets `access` and `waits`."""

    @wraps(command)
    def with_values(
        *arguments: Any,
        plain_http: bool,
        ca: Path | None,
        docker_config: Path | None,
        attempts: int | None,
        stall_seconds: float | None,
        longest_pause: float | None,
        **others: Any,
    ) -> None:
        waits = _patience(attempts, stall_seconds, longest_pause)
        command(*arguments, access=Access(plain_http, ca, docker_config), waits=waits, **others)

    decorated: Callable[..., None] = with_values
    for option in (
        click.option("--plain-http", is_flag=True, help="Talk to the registry without TLS."),
        click.option("--ca", type=FILE, help="PEM file: the only authorities trusted for the registry."),
        click.option("--docker-config", type=FILE, help="Docker config with the registry's login."),
        click.option("--attempts", type=click.IntRange(1), help="Failures in a row before giving up."),
        click.option("--stall-seconds", type=click.FloatRange(0.1), help="How long nothing may move."),
        click.option("--longest-pause", type=click.FloatRange(0), help="Seconds between attempts, at most."),
    ):
        decorated = option(decorated)
    return decorated


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """How a verb that takes long shows where it is, and where it writes its result."""
    for option in (
        click.option("--progress", "how", type=click.Choice(["auto", "json", "none"]), default="auto"),
        click.option("--progress-port", type=click.IntRange(0, 65535), help="Serve GET /progress here."),
        click.option(
            "--result-file",
            type=click.Path(path_type=Path),
            expose_value=False,  # the command line's end writes it, however the run ended
            help="Write the result here as JSON.",
        ),
    ):
        command = option(command)
    return command


def _patience(attempts: int | None, stall_seconds: float | None, longest_pause: float | None) -> Patience:
    """The usual patience with what the user changed of it; seconds."""
    usual = Patience()
    stall = usual.stall if stall_seconds is None else stall_seconds
    longest = usual.longest_pause if longest_pause is None else longest_pause
    return Patience(
        attempts=usual.attempts if attempts is None else attempts,
        stall=stall,
        connect=min(usual.connect, stall),
        longest_pause=longest,
        first_pause=min(usual.first_pause, longest),
    )
