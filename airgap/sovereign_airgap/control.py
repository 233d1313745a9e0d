# SPDX-License-Identifier: Apache-2.0
"""The control path: small exchanges on httpx2, each bounded in bytes and in time.

The HTTP library limits every single read, so a server that sends a byte now and then would hold an exchange
for ever, in its headers before anybody else gets a word in. Here one clock runs from the first byte sent to
the last one read. Nothing here retries, follows a redirect or knows a login.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import httpcore2
import httpx2

from sovereign_airgap.errors import SizeMismatch
from sovereign_airgap.wire import (
    USER_AGENT,
    LineBroken,
    Origin,
    Wire,
    certificate_error_in,
    certificate_unknown,
)

ANSWER_BYTES = 64 * 1024
# Answers that another try may not meet.
PASSING = frozenset([408, 425, 429, 500, 502, 503, 504])
# A body may take its time on top: this many of its bytes per second.
_BODY_PACE = 100_000
_SLICE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Reply:
    """A control response, its body read whole and bounded."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Control:
    """Asks whomever a registry's protocol leads to. Threads may share it."""

    def __init__(self, wire: Wire) -> None:
        patience = wire.pace.patience
        self._ca_option = wire.ca_option
        self._patience = patience
        self._client = httpx2.Client(
            transport=WholeExchange(wire.tls),
            trust_env=False,
            follow_redirects=False,
            # What is compared with a bound must be what is kept: nothing is unpacked here.
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
        )

    def close(self) -> None:
        self._client.close()

    def ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: bytes = b"",
        limit: int = ANSWER_BYTES,
        seconds: float | None = None,
    ) -> Reply:
        """One exchange; raises LineBroken where it broke off and SizeMismatch beyond `limit`."""
        seconds = seconds or self._patience.stall
        timeout = httpx2.Timeout(
            seconds,
            read=seconds + len(content) / _BODY_PACE,
            connect=min(seconds, self._patience.connect),
        )
        try:
            with self._client.stream(
                method, url, headers=headers, content=content or None, timeout=timeout
            ) as response:
                body = bytearray()
                for piece in response.iter_raw():
                    body += piece
                    if len(body) > limit:
                        raise SizeMismatch(
                            f"Expected at most {limit} bytes from {Origin.of(url)} for {method}, found "
                            "more; this is no answer of a registry."
                        )
                return Reply(response.status_code, response.headers, bytes(body))
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
            # UnicodeError: a host that is no name.
            unknown = certificate_error_in(error)
            if unknown is not None:
                raise certificate_unknown(Origin.of(url), unknown, self._ca_option) from error
            stalled = isinstance(error, httpx2.ReadTimeout | httpx2.WriteTimeout)
            raise LineBroken(f"{type(error).__name__}: {str(error)[:200]}", stalled) from error


class WholeExchange(httpx2.HTTPTransport):
    """All of a request, headers and body, may take `seconds`, or its read timeout where none are given.

    A thread may have one exchange at a time.
    """

    def __init__(self, tls: ssl.SSLContext, seconds: float | None = None) -> None:
        super().__init__(verify=tls, trust_env=False)
        self._seconds = seconds
        self._clock = _Clock()
        # The library's transport has no argument for the network below it; the limits are its own.
        self._pool = httpcore2.ConnectionPool(
            ssl_context=tls,
            max_connections=100,
            max_keepalive_connections=20,
            keepalive_expiry=5.0,
            network_backend=_Network(self._clock),
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self._clock.ends = time.monotonic() + (self._seconds or request.extensions["timeout"]["read"])
        return super().handle_request(request)


class _Clock(threading.local):
    """When the exchange of this thread ends."""

    ends: float = 0.0

    def within(self, timeout: float | None, late: type[httpcore2.TimeoutException]) -> float:
        """How long the next step may take; raises `late` where nothing is left."""
        rest = self.ends - time.monotonic()
        if rest <= 0:
            raise late("the exchange takes too long")
        return rest if timeout is None else min(timeout, rest)


class _Network(httpcore2.SyncBackend):
    def __init__(self, clock: _Clock) -> None:
        self._clock = clock

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        wait = self._clock.within(timeout, httpcore2.ConnectTimeout)
        return _Stream(super().connect_tcp(host, port, wait, local_address, socket_options), self._clock)


class _Stream(httpcore2.NetworkStream):
    def __init__(self, stream: httpcore2.NetworkStream, clock: _Clock) -> None:
        self._stream = stream
        self._clock = clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._clock.within(timeout, httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # In slices: the library's own write waits anew whenever some bytes were taken.
        for at in range(0, len(buffer), _SLICE_BYTES):
            wait = self._clock.within(timeout, httpcore2.WriteTimeout)
            self._stream.write(buffer[at : at + _SLICE_BYTES], wait)

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        wait = self._clock.within(timeout, httpcore2.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, wait), self._clock)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def close(self) -> None:
        self._stream.close()
