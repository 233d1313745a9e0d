# SPDX-License-Identifier: Apache-2.0
"""The command `sovereign-airgap`: its verbs, and the one place where errors become exit codes.

0 done, 1 failed, 2 usage, 3 refused. The result file (a pod's termination message) is written however a run
ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from sovereign_airgap.access import Access
from sovereign_airgap.commands.bundle import bundle_group
from sovereign_airgap.commands.bundle_create import bundle_create_command
from sovereign_airgap.commands.bundle_diff import bundle_diff_command
from sovereign_airgap.commands.bundle_load import bundle_load_command
from sovereign_airgap.commands.bundle_split import bundle_split_command
from sovereign_airgap.commands.bundle_verify import bundle_verify_command
from sovereign_airgap.commands.cache import cache_group
from sovereign_airgap.commands.cache_fetch import cache_fetch_command
from sovereign_airgap.commands.cache_hold import cache_hold_command
from sovereign_airgap.commands.cache_list import cache_list_command
from sovereign_airgap.commands.cache_scrub import cache_scrub_command
from sovereign_airgap.commands.install import install_command
from sovereign_airgap.commands.keygen import keygen_command
from sovereign_airgap.commands.probe import probe_group
from sovereign_airgap.commands.registry import registry_group
from sovereign_airgap.commands.registry_prune import registry_prune_command
from sovereign_airgap.commands.registry_verify import registry_verify_command
from sovereign_airgap.commands.sign import sign_command
from sovereign_airgap.commands.verify import verify_command
from sovereign_airgap.errors import (
    EXIT_DONE,
    EXIT_USAGE,
    InternalError,
    Interrupted,
    SovereignError,
)
from sovereign_airgap.options import (
    FILE,
    HubReferenceType,
    OciReferenceType,
    registry_options,
    run_options,
)
from sovereign_airgap.pace import Patience
from sovereign_airgap.progress import Progress, served, shown
from sovereign_airgap.reference import PUBLIC_ENDPOINT, HubReference, OciReference
from sovereign_airgap.selection import Wish
from sovereign_airgap.strict_json import Json

if TYPE_CHECKING:
    from sovereign_airgap.mirror import MirrorResult
    from sovereign_airgap.pull import PullResult

RESULT_BYTES = 3 * 1024
_MESSAGE_CHARACTERS = 1000
_log = logging.getLogger("sovereign_airgap")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="sovereign-models")
def cli() -> None:
    """Moves models into a registry and out of it again, with every digest checked."""


@cli.command("mirror")
@click.argument("source", type=HubReferenceType())
@click.argument("target", type=OciReferenceType())
@click.option("--include", multiple=True, metavar="GLOB", help="Take only files that match (repeatable).")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave out files that match (repeatable).")
@click.option("--endpoint", default=PUBLIC_ENDPOINT, show_default=True, help="Where the hub is.")
@click.option("--hub-ca", type=FILE, help="PEM file: the only authorities trusted for the hub.")
@click.option("--token-file", type=FILE, help="File with the hub token; nothing else is looked for.")
@registry_options
@run_options
@click.pass_context
def mirror_command(
    context: click.Context,
    source: HubReference,
    target: OciReference,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    endpoint: str,
    hub_ca: Path | None,
    token_file: Path | None,
    access: Access,
    waits: Patience,
    how: str,
    progress_port: int | None,
) -> None:
    """Mirrors SOURCE (hf://org/name@COMMIT) to TARGET (oci://HOST[/REPO][:TAG])."""
    if target.digest is not None:
        raise click.UsageError("TARGET takes a tag, not a digest: the digest is what comes out.")
    # Late: the hub's client takes a CPU second to import, and a pod that pulls needs none of it.
    from sovereign_airgap.hub import token_in
    from sovereign_airgap.mirror import MirrorOptions, mirror

    options = MirrorOptions(
        access=access,
        endpoint=endpoint,
        hub_ca=hub_ca,
        token=None if token_file is None else token_in(token_file),
        wish=Wish(include, exclude),
        patience=waits,
    )
    progress = Progress()
    with served(progress, progress_port), shown(progress, how):
        found = mirror(source, target, options, progress)
    context.obj.update(_mirrored(found))
    if how != "none":
        for file in found.left_out:
            click.echo(f"left out: {ascii(file.path)[1:-1]} {file.why}", err=True)
    if found.no_facts is not None:
        click.echo(f"no facts: {found.no_facts}", err=True)
    click.echo(_line(context.obj) if how == "json" else str(found.reference))


@cli.command("pull")
@click.argument("reference", type=OciReferenceType())
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--config-only", is_flag=True, help="Everything but the weights.")
@click.option(
    "--verify-always", is_flag=True, help="Hash files again even where the marker vouches for them."
)
@registry_options
@run_options
@click.pass_context
def pull_command(
    context: click.Context,
    reference: OciReference,
    directory: Path,
    config_only: bool,
    verify_always: bool,
    access: Access,
    waits: Patience,
    how: str,
    progress_port: int | None,
) -> None:
    """Pulls REFERENCE (oci://HOST/REPO@sha256:…) into DIRECTORY."""
    if reference.digest is None:
        raise click.UsageError("REFERENCE must be by digest, as in oci://HOST/REPO@sha256:…: tags can move.")
    from sovereign_airgap.pull import PullOptions, pull

    options = PullOptions(
        access=access,
        config_only=config_only,
        verify_always=verify_always,
        patience=waits,
    )
    progress = Progress()
    with served(progress, progress_port), shown(progress, how):
        found = pull(reference, directory, options, progress)
    context.obj.update(_pulled(found, reference))
    click.echo(_line(context.obj) if how == "json" else str(context.obj["message"]))


@cli.command("inspect")
@click.argument("reference", type=OciReferenceType())
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")
@registry_options
def inspect_command(
    reference: OciReference,
    as_json: bool,
    access: Access,
    waits: Patience,
) -> None:
    """Shows what the artifact REFERENCE is, without its weights."""
    if reference.tag is None and reference.digest is None:
        raise click.UsageError("REFERENCE must name a tag or a digest.")
    from rich.console import Console

    from sovereign_airgap.inspect import inspect, show

    found = inspect(reference, access, waits)
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2))
    else:
        show(found, Console())


cli.add_command(bundle_group)
bundle_group.add_command(bundle_create_command)
bundle_group.add_command(bundle_diff_command)
bundle_group.add_command(bundle_load_command)
bundle_group.add_command(bundle_split_command)
bundle_group.add_command(bundle_verify_command)
cli.add_command(cache_group)
cache_group.add_command(cache_fetch_command)
cache_group.add_command(cache_hold_command)
cache_group.add_command(cache_list_command)
cache_group.add_command(cache_scrub_command)
cli.add_command(probe_group)
cli.add_command(registry_group)
registry_group.add_command(registry_verify_command)
registry_group.add_command(registry_prune_command)
cli.add_command(install_command)
cli.add_command(keygen_command)
cli.add_command(sign_command)
cli.add_command(verify_command)


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code; the result file is written in any case."""
    result: dict[str, Json] = {}
    try:
        with _signals():
            cli.main(list(arguments), prog_name="sovereign-airgap", standalone_mode=False, obj=result)
        code = EXIT_DONE
    except click.exceptions.Exit as ended:
        code = ended.exit_code
    except click.ClickException as error:
        error.show()
        result = _failed("Usage", error.format_message())
        code = EXIT_USAGE
    except SovereignError as error:
        click.echo(f"{error.reason}: {error}", err=True)
        result = _failed(error.reason, str(error))
        code = error.exit_code
    except Exception as error:
        _log.exception("a defect of ours")
        result = _failed(
            InternalError.reason, f"{type(error).__name__}: this is a defect of ours, see the log."
        )
        code = InternalError.exit_code
    path = _result_file(arguments)
    if path is not None and result:
        # The exit code already says how the run ended.
        with contextlib.suppress(OSError):
            path.write_text(_line(result) + "\n", encoding="utf-8")
    return code


def main() -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    _log.setLevel(logging.WARNING if sys.stderr.isatty() else logging.INFO)
    # Libraries write progress bars and notices of their own; ours are the only ones.
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    sys.exit(run(sys.argv[1:]))


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and SIGINT end the run once, as Interrupted; while it cleans up they are ignored."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for wanted in (signal.SIGTERM, signal.SIGINT):
            signal.signal(wanted, signal.SIG_IGN)
        raise Interrupted(f"{signal.Signals(number).name} ended the work; start it again to go on.")

    try:
        before = {wanted: signal.signal(wanted, interrupt) for wanted in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: whoever runs us there keeps the signals
        yield
        return
    try:
        yield
    finally:
        for wanted, handler in before.items():
            signal.signal(wanted, handler)


def _mirrored(found: MirrorResult) -> dict[str, Json]:
    message = f"Mirrored {found.files} files ({found.size} bytes) of {found.source}."
    if found.no_facts is not None:
        message += f" No facts: {found.no_facts}"
    return {
        "reason": "Mirrored",
        "message": message[:_MESSAGE_CHARACTERS],
        "digest": str(found.digest),
        "reference": str(found.reference),
        "tag": found.tag,
        "bytes": found.size,
        "files": found.files,
        "revision": found.source.revision,
    }


def _pulled(found: PullResult, reference: OciReference) -> dict[str, Json]:
    return {
        "reason": "Pulled",
        "message": f"{found.files} files ({found.size} bytes) are in {found.directory}, {found.kept} were "
        "there.",
        "digest": str(found.digest),
        "reference": str(reference),
        "bytes": found.size,
        "files": found.files,
        "revision": found.revision,
    }


def _failed(reason: str, message: str) -> dict[str, Json]:
    return {"reason": reason, "message": message[:_MESSAGE_CHARACTERS]}


def _line(result: dict[str, Json]) -> str:
    text = json.dumps(result, ensure_ascii=False)
    if len(text.encode("utf-8", "replace")) > RESULT_BYTES:
        text = json.dumps({**result, "message": str(result["message"])[:200]}, ensure_ascii=True)
    return text


def _result_file(arguments: Sequence[str]) -> Path | None:
    """Read from the bare arguments, because a run may end before they are parsed."""
    for at, argument in enumerate(arguments):
        if argument == "--result-file" and at + 1 < len(arguments):
            return Path(arguments[at + 1])
        if argument.startswith("--result-file="):
            return Path(argument.partition("=")[2])
    return None


if __name__ == "__main__":
    main()
