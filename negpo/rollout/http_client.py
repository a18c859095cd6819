"""JSON over HTTP with deadlines and bounded retries, on the standard library."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, TypeVar

from negpo.rollout.base import EngineError

Parsed = TypeVar("Parsed")

LARGEST_ANSWER = 256 << 20  # bytes; an answer beyond this is garbage, not a completion


class ServerRefused(EngineError):
    """The server understood and said no (4xx): asking again cannot help."""


class JSONClient:
    """Requests to one server.

    Args:
        address: `http://host:port`.
        timeout: seconds one attempt may take, connecting included.
        retries: further attempts after a failed one.
        backoff: seconds before the first retry, doubled each time.
        api_key: sent as a bearer token.
    """

    def __init__(
        self, address: str, *, timeout: float, retries: int = 3, backoff: float = 0.5, api_key: str | None = None
    ):
        self.address, self.timeout, self.retries, self.backoff = address.rstrip("/"), timeout, retries, backoff
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        # A rollout server is a neighbour: HTTP proxies of the environment are for the outside world.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def call(
        self,
        path: str,
        body: Any = None,
        *,
        parse: Callable[[Any], Parsed],
        label: str,
        method: str | None = None,
        text: bool = False,
    ) -> Parsed:
        """Send a request until `parse` accepts the answer.

        Args:
            body: sent as JSON with POST; None means GET unless `method` says otherwise.
            parse: turns the decoded answer into the result; KeyError, IndexError, TypeError and ValueError mean that
                the answer is garbage.
            label: names the request in errors.
            text: the answer is plain text, handed to `parse` as it is.

        Raises:
            ServerRefused: the server answered 4xx (other than 408 and 429).
            EngineError: no usable answer after all attempts.
        """
        problem = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.backoff * 2 ** (attempt - 1))
            try:
                raw = self._send(path, body, method)
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code}: {_excerpt(error)}"
                if 400 <= error.code < 500 and error.code not in (408, 429):
                    raise ServerRefused(f"{self.address}{path} refused {label}: {problem}") from error
                continue
            except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out, broken off half-way
                problem = f"{type(error).__name__}: {error}"
                continue
            try:
                if text:
                    return parse(raw.decode(errors="replace"))
                return parse(json.loads(raw) if raw.strip() else None)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                problem = f"unusable answer {raw[:200]!r} ({type(error).__name__}: {error})"
        raise EngineError(
            f"{self.address}{path} gave no usable answer to {label} in {self.retries + 1} attempts of at most "
            f"{self.timeout:g} s; last: {problem}. Look at the server's log, then restart it, or raise timeout."
        )

    def _send(self, path: str, body: Any, method: str | None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data=data, headers=self._headers, method=method)
        deadline = time.monotonic() + self.timeout
        with self._opener.open(request, timeout=self.timeout) as response:
            # The socket's timeout restarts with every byte; a server that drips would otherwise never end.
            chunks, size = [], 0
            while chunk := response.read1(1 << 20):
                chunks.append(chunk)
                size += len(chunk)
                if time.monotonic() > deadline or size > LARGEST_ANSWER:
                    raise TimeoutError(f"answer still incomplete after {size} bytes")
            if response.length:
                raise http.client.IncompleteRead(b"".join(chunks), response.length)
        return b"".join(chunks)


def _excerpt(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(300).decode(errors="replace")
    except OSError:
        return error.reason
