# SPDX-License-Identifier: Apache-2.0
"""Who we are to a registry: docker config, Basic, and Bearer tokens of the distribution specification."""

from __future__ import annotations

import base64
import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode, urlsplit, urlunsplit

from sovereign_airgap import strict_json
from sovereign_airgap.control import PASSING, Control, Reply
from sovereign_airgap.errors import CredentialsUnreadable, InvalidReference, RegistryForbidden, UnsafeRedirect
from sovereign_airgap.strict_json import Json
from sovereign_airgap.wire import LineBroken, Origin

# A name begins where no other goes on: else a long word would be tried from each letter to its end.
_PARAMETER = re.compile(
    r'(?<![A-Za-z0-9_-])([A-Za-z][A-Za-z0-9_-]*)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))'
)
_MAX_CHALLENGE_CHARACTERS = 4 * 1024
_MAX_TOKEN_BYTES = 256 * 1024
_LONGEST_TOKEN_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True)
class Credentials:
    """A login; `identity_token` stands instead of a password where a registry issued one."""

    user: str
    password: str
    identity_token: str = ""

    @property
    def basic(self) -> str:
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode("ascii")

    def __repr__(self) -> str:
        return f"Credentials(user={self.user!r})"


def docker_config_path(given: Path | None) -> Path | None:
    """The file that was given, else docker's own where it exists."""
    if given is not None:
        return given
    folder = os.environ.get("DOCKER_CONFIG")
    path = (Path(folder) if folder else Path.home() / ".docker") / "config.json"
    return path if path.is_file() else None


def read_docker_config(path: Path | None, host: str) -> Credentials | None:
    """The login for one registry, or None (anonymous). Credential helpers are programs: they are not run."""
    if path is None:
        return None
    try:
        document = strict_json.load_object(path.read_bytes())
    except (OSError, strict_json.NotStrict) as error:
        raise CredentialsUnreadable(
            f"Expected a docker config at {path}, found: {str(error)[:200]}."
        ) from error
    auths = document.get("auths")
    for key in (host, f"https://{host}", f"http://{host}", f"https://{host}/v1/", f"https://{host}/v2/"):
        entry = auths.get(key) if isinstance(auths, dict) else None
        if isinstance(entry, dict) and entry:
            return _login(entry, path, host)
    helpers = document.get("credHelpers")
    helper = helpers.get(host) if isinstance(helpers, dict) else None
    helper = helper or (document.get("credsStore") if _is_empty_entry(auths, host) else None)
    if helper:
        raise CredentialsUnreadable(
            f"{path} keeps the login for {host} in the credential helper {str(helper)[:60]!r}, which is "
            "not run here; write the login into 'auths' of a file and give it with --docker-config."
        )
    return None


def _is_empty_entry(auths: Json, host: str) -> bool:
    # docker login with a store leaves an empty entry behind: the login exists, but not here.
    return isinstance(auths, dict) and any(key in auths for key in (host, f"https://{host}"))


def _login(entry: dict[str, Json], path: Path, host: str) -> Credentials:
    user, password = entry.get("username"), entry.get("password")
    packed = entry.get("auth")
    if isinstance(packed, str) and packed:
        try:
            text = base64.b64decode(packed, validate=True).decode("utf-8")
        except ValueError as error:  # no base64, no ASCII, no UTF-8 in it
            raise CredentialsUnreadable(
                f"Expected base64 of user:password for {host} in {path}, found something else."
            ) from error
        user, colon, password = text.partition(":")
        if not colon:
            raise CredentialsUnreadable(
                f"Expected base64 of user:password for {host} in {path}, found no colon."
            )
    token = entry.get("identitytoken")
    login = Credentials(
        user if isinstance(user, str) else "",
        password.rstrip("\0") if isinstance(password, str) else "",
        token if isinstance(token, str) else "",
    )
    try:
        "".join((login.user, login.password, login.identity_token)).encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair: JSON can write it, no request can
        raise CredentialsUnreadable(
            f"Expected a login that can be sent for {host} in {path}, found half a character in it."
        ) from error
    return login


@dataclass(frozen=True, slots=True)
class Challenge:
    """A parsed WWW-Authenticate; what lies beyond its first 4 KiB is not read."""

    scheme: str
    parameters: Mapping[str, str]

    @classmethod
    def parse(cls, header: str) -> Challenge:
        scheme, _, rest = header[:_MAX_CHALLENGE_CHARACTERS].strip().partition(" ")
        found = {
            m[1].lower(): re.sub(r"\\(.)", r"\1", m[2]) if m[2] is not None else m[3]
            for m in _PARAMETER.finditer(rest)
        }
        return cls(scheme.lower(), found)


class Authority:
    """Answers a registry's challenges; tokens are kept per scope until shortly before they end."""

    def __init__(self, control: Control, registry: Origin, credentials: Credentials | None) -> None:
        self._control = control
        self._registry = registry
        self._credentials = credentials
        self._lock = threading.Lock()
        self._basic = False
        self._tokens: dict[str, tuple[str, float]] = {}

    def header(self, scope: str) -> str | None:
        """The Authorization to send, as far as a challenge has taught us."""
        with self._lock:
            if self._basic and self._credentials is not None:
                return self._credentials.basic
            token, ends = self._tokens.get(scope, ("", 0.0))
            return f"Bearer {token}" if time.monotonic() < ends else None

    def answer(self, www_authenticate: str, scope: str) -> None:
        """Learns from a 401; the caller sends its request once more with `header`.

        Raises LineBroken where a token is not to be had now.
        """
        challenge = Challenge.parse(www_authenticate)
        if challenge.scheme == "basic":
            if self._credentials is None:
                raise RegistryForbidden(
                    f"{self._registry} wants a login and there is none for it; give one with --docker-config."
                )
            with self._lock:
                self._basic = True
            return
        if challenge.scheme != "bearer":
            raise RegistryForbidden(
                f"Expected {self._registry} to ask for Basic or Bearer, found {challenge.scheme[:40]!r}."
            )
        token, seconds = self._fetch(challenge, scope)
        with self._lock:
            self._tokens[scope] = (token, time.monotonic() + max(5.0, seconds * 0.8))

    def _fetch(self, challenge: Challenge, scope: str) -> tuple[str, float]:
        realm = challenge.parameters.get("realm", "")
        try:
            origin = Origin.of(realm)
        except InvalidReference as error:
            raise RegistryForbidden(
                f"Expected {self._registry} to say where tokens are given, found {realm[:100]!r}."
            ) from error
        if origin.scheme != "https" and self._registry.scheme == "https":
            raise UnsafeRedirect(
                f"{self._registry} wants the login sent without TLS to {origin}; that is refused."
            )
        service = challenge.parameters.get("service", "")
        query = {"service": service, "scope": scope} if service else {"scope": scope}
        try:
            reply = self._ask(realm, query)
        except LineBroken as error:
            raise LineBroken(f"no token from {origin}: {error}", error.stalled) from error
        if reply.status in PASSING:
            raise LineBroken(f"no token from {origin}: status {reply.status}")
        if reply.status != 200:
            raise RegistryForbidden(
                f"Expected a token for {scope} from {origin}, found status {reply.status}; check "
                "the login in the docker config and its rights."
            )
        try:
            document = strict_json.load_object(reply.body)
        except strict_json.NotStrict as error:
            raise RegistryForbidden(
                f"Expected a token as JSON from {origin}, found: {str(error)[:100]}."
            ) from error
        token = document.get("token") or document.get("access_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise RegistryForbidden(f"Expected a token from {origin}, found none.")
        seconds = document.get("expires_in")
        if not isinstance(seconds, int) or isinstance(seconds, bool):
            return token, 60.0
        return token, float(min(seconds, _LONGEST_TOKEN_SECONDS))

    def _ask(self, realm: str, query: Mapping[str, str]) -> Reply:
        login = self._credentials
        if login is not None and login.identity_token:
            form = {**query, "grant_type": "refresh_token", "refresh_token": login.identity_token}
            form["client_id"] = "sovereign-airgap"
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            return self._control.ask("POST", realm, headers, urlencode(form).encode(), _MAX_TOKEN_BYTES)
        headers = {"Authorization": login.basic} if login is not None else {}
        return self._control.ask("GET", _with(realm, query), headers, limit=_MAX_TOKEN_BYTES)


def _with(address: str, query: Mapping[str, str]) -> str:
    parts = urlsplit(address)
    before = f"{parts.query}&" if parts.query else ""
    return urlunsplit(parts._replace(query=before + urlencode(query)))
