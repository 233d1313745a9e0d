# SPDX-License-Identifier: Apache-2.0
"""Where the machine that builds takes packages from: apt mirrors, index settings, certificates.

Nothing is hard-coded and nothing of it stays in an image: settings travel as build secrets.
"""

from __future__ import annotations

import ast
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dev.images.errors import BuildFailed

DISTRIBUTION_KEYRINGS = ("debian-archive-keyring", "ubuntu-archive-keyring")
CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
# How pip calls a setting -> how uv calls it.
INDEX_SETTINGS = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "trusted-host": "UV_INSECURE_HOST",
    "proxy": "ALL_PROXY",
}


class NoMirror(BuildFailed):
    """The machine's apt sources name no archive of its own distribution."""


@dataclass(frozen=True)
class AptSource:
    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str | None = None


def parse_apt_sources(text: str, *, deb822: bool) -> Iterator[AptSource]:
    """The `deb` entries of one file below /etc/apt, in either of apt's two formats."""
    return _parse_deb822(text) if deb822 else _parse_one_line(text)


def _parse_deb822(text: str) -> Iterator[AptSource]:
    for stanza in text.split("\n\n"):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line.startswith("#") or not line.strip():
                continue
            if line[0].isspace():
                fields[key] = f"{fields.get(key, '')} {line.strip()}"
            else:
                key, _, value = line.partition(":")
                key = key.strip().lower()
                fields[key] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes") == "no":
            continue
        for uri in fields.get("uris", "").split():
            yield AptSource(
                uri,
                tuple(fields.get("suites", "").split()),
                tuple(fields.get("components", "").split()),
                fields.get("signed-by") or None,
            )


def _parse_one_line(text: str) -> Iterator[AptSource]:
    for raw in text.splitlines():
        line = raw.split("#", 1)[0].strip()
        if not line.startswith("deb ") and not line.startswith("deb\t"):
            continue
        rest, signed_by = line[3:].strip(), None
        if rest.startswith("["):
            options, _, rest = rest[1:].partition("]")
            signed_by = dict(o.partition("=")[::2] for o in options.split()).get("signed-by")
        uri, suite, *components = rest.split()
        yield AptSource(uri, (suite,), tuple(components), signed_by)


def choose_mirror(sources: Iterable[AptSource], codename: str) -> AptSource:
    """The distribution's own archive: third parties publish a `main` under the same code name, too."""
    candidates = [s for s in sources if codename in s.suites and "main" in s.components]
    if not candidates:
        raise NoMirror(
            f"expected an apt source with suite {codename} and component main under /etc/apt, found none; "
            "give the images a public base with a container registry instead, or add one"
        )

    def distrust(source: AptSource) -> tuple[bool, bool]:
        signed = any(name in (source.signed_by or "") for name in DISTRIBUTION_KEYRINGS)
        third_party = source.signed_by is not None and not signed
        return (third_party, f"{codename}-updates" not in source.suites and not signed)

    return min(candidates, key=distrust)


def codename(os_release: str) -> str:
    settings = dict(line.partition("=")[::2] for line in os_release.splitlines() if "=" in line)
    return settings.get("VERSION_CODENAME", "").strip('"')


def mirror(root: Path = Path("/")) -> tuple[str, AptSource]:
    """(code name, archive) of this machine's distribution."""
    name = codename((root / "etc/os-release").read_text())
    sources: list[AptSource] = []
    apt = root / "etc/apt"
    for file in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]:
        if file.is_file() and file.suffix in (".list", ".sources"):
            sources += parse_apt_sources(file.read_text(), deb822=file.suffix == ".sources")
    chosen = choose_mirror(sources, name)
    if chosen.uri.startswith("mirror+file:"):
        listed = (root / chosen.uri.removeprefix("mirror+file:").lstrip("/")).read_text().split()
        chosen = AptSource(listed[0], chosen.suites, chosen.components, chosen.signed_by)
    return name, chosen


def certificates(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The bundle this machine's tools are told to trust, if they are told."""
    for variable in CERTIFICATE_VARIABLES:
        path = environment.get(variable)
        if path and Path(path).is_file():
            return Path(path)
    return None


def pip_configuration() -> str:
    return subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=False, capture_output=True, text=True
    ).stdout


def index_settings(configuration: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """pip's settings (`pip config list`) in uv's words, then uv's own environment, which wins."""
    settings: dict[str, str] = {}
    for line in configuration.splitlines():
        key, _, quoted = line.partition("=")
        section, _, name = key.rpartition(".")
        if name in INDEX_SETTINGS and (section in ("global", "install", ":env:")):
            settings[INDEX_SETTINGS[name]] = " ".join(str(ast.literal_eval(quoted)).split())
    settings |= {
        k: v for k, v in environment.items() if k.startswith("UV_INDEX") or k in INDEX_SETTINGS.values()
    }
    return dict(sorted(settings.items()))


def shell_exports(settings: Mapping[str, str]) -> str:
    return "".join(f"export {key}={shlex.quote(value)}\n" for key, value in sorted(settings.items()))
