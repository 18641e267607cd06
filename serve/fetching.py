"""Videos that a client names by address: fetched as little as any address deserves trust.

Over https only from hosts that the configuration names; all that the name resolves to must be public, and the connection is made to an
address that was looked at, not to the name again (DNS rebinding), while certificate and Host header are those of the name. No redirects, no
proxies, no compressed transfer; bytes are counted while they come, and a deadline holds for all of it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import httpcore
import httpx
from pyarrow import fs

from rbft import storage
from rbft.config import UrlsConfig
from rbft.errors import ArtifactError, UploadTooLargeError, UrlRefusedError, UrlUnreachableError
from serve.addresses import Address, is_public
from serve.links import Link, StoredTarget, WebTarget, allowed_target
from serve.upload import named, storing

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port to the addresses of all its records."""
Write = Callable[[bytes], None]

_HEADERS = [("User-Agent", "rbft"), ("Accept", "video/*, application/octet-stream"), ("Accept-Encoding", "identity")]
_STORED_PIECE_BYTES = 1 << 20
_THREADS = ThreadPoolExecutor(8, "fetch")
"""Of their own: a name server or a store that hangs must not keep uploads waiting for a thread."""


async def resolve(host: str, port: int) -> Sequence[str]:
    found = await _in_thread(socket.getaddrinfo, host, port, 0, socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Fetcher:
    """Fetches what `config` allows, at most `max_bytes` of each. The other arguments are for tests, which have no public addresses."""

    def __init__(
        self,
        config: UrlsConfig,
        max_bytes: int,
        *,
        resolve: Resolve = resolve,
        is_allowed: Callable[[Address], bool] = is_public,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._config = config
        self._max_bytes = max_bytes
        self._network = _CheckedNetwork(resolve, is_allowed)
        self._tls = tls or httpx.create_ssl_context()

    @asynccontextmanager
    async def fetched(self, link: Link) -> AsyncIterator[Path]:
        """The video of `link` as a file for as long as the context lasts.

        Raises `UrlRefusedError` for what may not be asked, `UrlUnreachableError` for what cannot be had, `UploadTooLargeError`, and
        `OverloadedError` where there is no room for it.
        """
        target = allowed_target(link.url, self._config)
        with storing():
            descriptor, name = tempfile.mkstemp(prefix="rbft-fetched-")
        path = Path(name)
        deadline = asyncio.timeout(self._config.timeout_s)
        try:
            async with deadline:
                with FileIO(descriptor, "wb") as file:
                    write = self._limited(file)
                    if isinstance(target, WebTarget):
                        await self._download(target, write)
                    else:
                        await _in_thread(_copy_stored, target, write)
            with named(path, "the video at the url"):
                yield path
        except TimeoutError:
            if not deadline.expired():
                raise
            raise UrlUnreachableError(f"the video was not there within {self._config.timeout_s:g} s; send the file instead") from None
        finally:
            path.unlink()

    def _limited(self, file: FileIO) -> Write:
        num_bytes = 0

        def write(piece: bytes) -> None:
            nonlocal num_bytes
            num_bytes += len(piece)
            if num_bytes > self._max_bytes:
                raise UploadTooLargeError(f"the video is larger than {self._max_bytes} bytes; name a shorter or smaller one")
            with storing():  # or it would be taken for a failure of the host's
                rest = memoryview(piece)
                while rest:
                    rest = rest[file.write(rest) :]

        return write

    async def _download(self, target: WebTarget, write: Write) -> None:
        url = httpcore.URL(scheme="https", host=target.host, port=target.port, target=target.target)
        try:
            # A pool for one request: no connection outlives the look at its address, and h11 alone reads what comes.
            async with (
                httpcore.AsyncConnectionPool(ssl_context=self._tls, network_backend=self._network, http2=False) as pool,
                pool.stream("GET", url, headers=_HEADERS) as response,
            ):
                _check(response)
                async for piece in response.aiter_stream():
                    write(piece)
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            raise UrlUnreachableError(f"the host did not give the video ({type(error).__name__}); send the file instead") from None


def _check(response: httpcore.Response) -> None:
    headers = httpx.Headers(response.headers)
    if response.status != 200:
        hint = "; redirects are not followed" if 300 <= response.status < 400 else ""
        raise UrlUnreachableError(f"the host answered {response.status} instead of giving the video{hint}; send the file instead")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UrlUnreachableError("the host compresses what it gives, though it was asked not to; send the file instead")


class _CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to names whose addresses are all allowed, and to one of these addresses."""

    def __init__(self, resolve: Resolve, is_allowed: Callable[[Address], bool]) -> None:
        self._resolve = resolve
        self._is_allowed = is_allowed
        self._tcp = httpcore.AnyIOBackend()

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None, socket_options: Any = None
    ) -> httpcore.AsyncNetworkStream:
        addresses = [ipaddress.ip_address(address) for address in await self._resolve(host, port)]
        if not addresses or not all(map(self._is_allowed, addresses)):
            # One that is not may be where another answer of the name server would lead.
            raise UrlRefusedError("its host has an address that is not of the public internet; send the file instead")
        for address in addresses[:-1]:
            try:
                return await self._tcp.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except httpcore.NetworkError:
                continue
        return await self._tcp.connect_tcp(str(addresses[-1]), port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def _copy_stored(target: StoredTarget, write: Write) -> None:
    """The file as it is, to `write`: no compression is looked for, no link leads out of the folder. In a thread, which ends with its next
    piece when nobody waits for it any more and `write` fails."""
    try:
        where, path = _locate(target)
        with where.open_input_stream(path, compression=None) as stream:
            while piece := stream.read(_STORED_PIECE_BYTES):
                write(piece)
    except (OSError, ValueError, ArtifactError):  # ValueError is Arrow's for names that a store cannot have
        raise UrlUnreachableError("there is no such file, or it cannot be read; correct the address") from None


async def _in_thread(work: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(_THREADS, work, *arguments)


def _locate(target: StoredTarget) -> tuple[fs.FileSystem, str]:
    where, folder = storage.filesystem(target.folder)
    path = f"{folder.rstrip('/')}/{target.name}"
    if isinstance(where, fs.LocalFileSystem):
        folder, path = os.path.realpath(folder), os.path.realpath(path)
        if os.path.commonpath((folder, path)) != folder:
            raise UrlRefusedError("it leads out of the folder that this service reads; send the file instead")
    if where.get_file_info(path).type != fs.FileType.File:
        raise FileNotFoundError(path)
    return where, path
