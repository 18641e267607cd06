"""What a file says it holds, and whether we are willing to decode it: format, protocol and codec allow-lists.

A playlist named `.mp4` makes a decoder read *other* files, so nothing is opened but by FFmpeg's own list of formats and the `file`
protocol; the codec's name is checked before a packet is decoded. Not covered: whether the frames decode (`rbft.video.decode`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import av
from av.sidedata.sidedata import Type as SideDataType

from rbft.errors import (
    NoVideoStreamError,
    VideoDecodeError,
    VideoEmptyError,
    VideoFormatError,
    VideoMemoryError,
    VideoMissingError,
)
from rbft.video.limits import NO_LIMITS, SourceLimits

FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "asf", "avi", "flv", "gif", "mpeg", "mpegts", "ogg")
"""FFmpeg's names of the containers we open. None of them refers to other files, except MOV's data references, which FFmpeg leaves off."""

CODECS = frozenset(
    "av1 dnxhd dvvideo flv1 gif h263 h264 hevc mjpeg mpeg1video mpeg2video mpeg4 msmpeg4v2 msmpeg4v3 prores theora vc1 vp8 vp9 "
    "wmv1 wmv2 wmv3".split()
)
"""FFmpeg's names of the codecs we decode: what cameras, phones and the web write."""

_DECODERS = (*sorted(CODECS), "libdav1d", "libvpx", "libvpx-vp9")

_PROBE_PACKETS = 64
"""Packets of the first frames; a decoder that has given none by then is left to `decode` to judge."""

_MP4_FIRST_BOXES = frozenset((b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"sidx", b"moof", b"uuid", b"emsg"))


@dataclass(frozen=True)
class VideoInfo:
    """What the header and the first frame of a video say. Headers lie; `rbft.video.index` has what is really there."""

    container: str
    """FFmpeg's name, e.g. "mov,mp4,m4a,3gp,3g2,mj2"."""
    codec: str
    pixel_format: str | None
    height: int
    """Of the frames as stored, before rotation."""
    width: int
    orientation: tuple[int, int, int, int]
    """Signs (a, b, c, d) of the display matrix: shown x = a x + c y, shown y = b x + d y. (1, 0, 0, 1) is upright."""
    duration_s: float | None
    fps: float | None
    num_frames: int | None
    num_video_streams: int

    @property
    def is_upright(self) -> bool:
        return self.orientation == UPRIGHT

    @property
    def is_mirrored(self) -> bool:
        a, b, c, d = self.orientation
        return a * d - b * c < 0

    @property
    def rotation_deg(self) -> int:
        """Clockwise rotation that a player applies, one of 0, 90, 180, 270; mirroring apart."""
        a, b, _, _ = self.orientation
        return {(1, 0): 0, (0, 1): 90, (-1, 0): 180, (0, -1): 270}[a, b]


UPRIGHT = (1, 0, 0, 1)

_QUARTER_TURNS = (UPRIGHT, (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0))
"""Orientations of 0, 90, 180 and 270 degrees clockwise."""


def probe(path: str | Path) -> VideoInfo:
    """What the video at `path` is, from its header and its first frame.

    Raises `VideoMissingError`, `VideoEmptyError`, `VideoFormatError` (also for a playlist, whatever its name), `NoVideoStreamError`,
    `VideoDecodeError`, `VideoMemoryError`.
    """
    with open_video(path) as (container, stream):
        duration_s = float(stream.duration * stream.time_base) if stream.duration else None
        if duration_s is None and container.duration:
            duration_s = container.duration / av.time_base
        rate = stream.average_rate or stream.guessed_rate
        orientation = next((orientation_of(frame) for frame in _first_frames(container, stream)), UPRIGHT)
        return VideoInfo(
            container=container.format.name,
            codec=stream.codec.canonical_name,
            pixel_format=stream.codec_context.pix_fmt,
            height=stream.height,
            width=stream.width,
            orientation=orientation,
            duration_s=duration_s,
            fps=float(rate) if rate else None,
            num_frames=stream.frames or None,
            num_video_streams=len(_moving_streams(container)),
        )


@contextmanager
def open_video(path: str | Path, limits: SourceLimits = NO_LIMITS) -> Iterator[tuple[Any, Any]]:
    """The opened container and its best video stream (PyAV), one decoding thread, allow-lists checked, and `limits` against its header.

    Raises as `probe` does, and `VideoTooLargeError`.
    """
    location = os.path.abspath(path)
    _check_file(location)
    # The prefix, because a name like "concat:a|b" is a protocol to FFmpeg.
    options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file", "codec_whitelist": ",".join(_DECODERS)}
    try:
        container = av.open(f"file:{location}", options=options, metadata_errors="replace")
    except av.error.FFmpegError as error:
        raise _open_error(location, error) from None
    except ValueError as error:  # a container without a single stream
        raise VideoDecodeError(f"{location}: {error}; get the file again") from None
    with container:
        streams = _moving_streams(container)
        if not streams:
            raise NoVideoStreamError(f"{location}: holds no video, only {_kinds(container)}; leave it out or give the video file")
        best = container.streams.best("video")
        stream = best if best in streams else streams[0]
        codec = stream.codec.canonical_name if stream.codec_context is not None else "unknown"
        if codec not in CODECS:
            raise VideoFormatError(f"{location}: codec {codec} is not one we decode ({', '.join(sorted(CODECS))}); re-encode it as H.264")
        limits.check_size(stream.height, stream.width)
        limits.check_frames(stream.frames)
        limits.check_duration((container.duration or 0) / av.time_base)
        stream.codec_context.thread_count = 1  # parallelism is the pool's: one decode, one core
        yield container, stream


def starts_as_mp4_or_matroska(path: str | Path) -> bool:
    """Whether the first bytes leave no doubt that this is MP4/MOV or Matroska/WebM, to an old FFmpeg as to a new one."""
    with open(path, "rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" or head[:4] == b"\x1a\x45\xdf\xa3"


def orientation_of(frame: Any) -> tuple[int, int, int, int]:
    """`VideoInfo.orientation` of a PyAV frame, from its display matrix; angles between the right ones go to the nearest."""
    try:
        if SideDataType.DISPLAYMATRIX not in frame.side_data:
            return UPRIGHT
    except ValueError:  # PyAV 18 cannot list side data of a type newer than itself (EXIF of a HEIC); the angle it can still tell
        return _QUARTER_TURNS[round(-frame.rotation / 90) % 4]
    # Nine little-endian int32, row-major, for a row vector (x, y, 1): libavutil/display.h.
    a, b, _, c, d, *_ = memoryview(bytes(frame.side_data[SideDataType.DISPLAYMATRIX])).cast("i")
    if max(abs(a), abs(d)) >= max(abs(b), abs(c)):
        return (-1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1)
    return (0, -1 if b < 0 else 1, -1 if c < 0 else 1, 0)


def _first_frames(container: Any, stream: Any) -> Iterator[Any]:
    try:
        for packet in islice(container.demux(stream), _PROBE_PACKETS):
            yield from packet.decode()
    except MemoryError:
        raise
    except av.error.FFmpegError:
        return


def _moving_streams(container: Any) -> list[Any]:
    """The video streams that are not a cover picture."""
    return [stream for stream in container.streams.video if not stream.disposition & av.stream.Disposition.attached_pic]


def _kinds(container: Any) -> str:
    return " and ".join(sorted({stream.type for stream in container.streams})) or "an empty container"


def _check_file(location: str) -> None:
    try:
        status = os.stat(location)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise VideoMissingError(f"{location}: {reason}; correct the path in the manifest") from None
    if stat.S_ISDIR(status.st_mode):
        raise VideoFormatError(f"{location}: is a folder, not a video file")
    if stat.S_ISREG(status.st_mode) and status.st_size == 0:
        raise VideoEmptyError(f"{location}: has no bytes; get it again")


def _open_error(location: str, error: Exception) -> Exception:
    if isinstance(error, MemoryError):
        return VideoMemoryError(f"{location}: its header asks for more memory than the decoder may have")
    if isinstance(error, PermissionError):
        return VideoMissingError(f"{location}: may not be read (permission denied)")
    refusals = (av.error.InvalidDataError, av.error.ArgumentError)  # nothing FFmpeg knows; something that is not on the list
    if isinstance(error, refusals) and not _starts_as_video(location):
        return VideoFormatError(f"{location}: is not of a format we open (MP4, MOV, MKV, WebM, AVI, FLV, MPEG, TS, ASF, OGG, GIF)")
    if isinstance(error, av.error.PatchWelcomeError):
        return VideoDecodeError(f"{location}: is of a kind that FFmpeg does not read yet; re-encode it as H.264 in MP4")
    return VideoDecodeError(f"{location}: cannot be opened ({reason_of(error)}); it is cut short or corrupt, get it again")


def _starts_as_video(location: str) -> bool:
    """Whether the first bytes are those of a format of `FORMATS`: FFmpeg has no error of its own for what it does not know."""
    with open(location, "rb") as file:
        head = file.read(189)
    starts = (b"\x1a\x45\xdf\xa3", b"FLV", b"GIF8", b"OggS", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"\x30\x26\xb2\x75")
    is_ts = head[:1] == b"G" and head[188:189] in (b"G", b"")
    return head[4:8] in _MP4_FIRST_BOXES or head.startswith(starts) or (head[:4] == b"RIFF" and head[8:11] == b"AVI") or is_ts


def reason_of(error: Exception) -> str:
    """One line on what FFmpeg said."""
    return str(getattr(error, "strerror", None) or error).splitlines()[0] or type(error).__name__
