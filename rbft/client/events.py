"""Server-sent events (WHATWG HTML, 9.2) as `serve.events` writes them, out of bytes that may be cut anywhere."""

from __future__ import annotations

from collections.abc import Iterator


class EventReader:
    """Takes pieces of a stream, gives whole events. Split at line feeds alone: JSON text may hold what Unicode calls a line separator."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> Iterator[tuple[str, bytes]]:
        """Name and data of each event that `piece` completes."""
        *blocks, self._rest = (self._rest + piece).split(b"\n\n")
        for block in blocks:
            fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if b": " in line)
            if b"data" in fields:
                yield fields.get(b"event", b"message").decode(), fields[b"data"]
