"""Which packets no other frame refers to, from their first bytes: what need not be decoded unless it is itself wanted.

FFmpeg's own way (`skip_frame`) would do, but a skipped packet holds up its decoding threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

from rbft.video import av1

_PROGRESSIVE = 1  # AV_FIELD_PROGRESSIVE, libavcodec/defs.h


def spare_test(stream: Any, packets: Sequence[Any]) -> Callable[[Any], bool]:
    """Whether one of `packets`, all those of `stream` (PyAV), is surely referred to by no other one; never, where that cannot be told.

    It can in AV1, and in H.264 and HEVC as MP4, Matroska and FLV store them: each NAL unit after its length, whose size is in the
    extradata (ISO/IEC 14496-15, 5.3.3.1.2 and 8.3.3.1.2).
    """
    codec = stream.codec_context
    extradata = bytes(codec.extradata or b"")
    if codec.name == "h264" and len(extradata) > 6 and extradata[0] == 1 and codec.field_order == _PROGRESSIVE:
        return lambda packet: _is_spare_h264(bytes(packet), (extradata[4] & 3) + 1)
    # With one temporal layer only (byte 21, bits 3 to 5): within a layer "not a reference" is meant for that layer and those below.
    if codec.name == "hevc" and len(extradata) > 22 and extradata[0] == 1 and extradata[21] >> 3 & 7 == 1:
        return lambda packet: _is_spare_hevc(bytes(packet), (extradata[21] & 3) + 1)
    if codec.name in ("av1", "libdav1d"):
        # After four bytes (AV1 in ISOBMFF, 2.3.3) the extradata, too, is OBUs.
        header = av1.common_header(chain([extradata[4:]], (bytes(packet) for packet in packets if packet.is_keyframe)))
        if header is not None:
            return lambda packet: not av1.is_kept(bytes(packet), header)
    return lambda packet: False


def _is_spare_h264(data: bytes, length_size: int) -> bool:
    # ITU-T H.264, 7.3.1 and table 7-1: types 1 to 5 are slices, and nal_ref_idc 0 says that nothing refers to this one.
    slices = [head for head in _heads(data, length_size) if 1 <= head & 31 <= 5]
    return bool(slices) and not any(head >> 5 & 3 for head in slices)


def _is_spare_hevc(data: bytes, length_size: int) -> bool:
    # ITU-T H.265, 7.3.1.2 and table 7-1: types below 32 are slices, of which the even ones below 16 are not references.
    types = [head >> 1 & 63 for head in _heads(data, length_size)]
    slices = [kind for kind in types if kind < 32]
    return bool(slices) and all(kind < 16 and kind % 2 == 0 for kind in slices)


def _heads(data: bytes, length_size: int) -> Iterator[int]:
    """The first byte of each NAL unit."""
    place = 0
    while place + length_size < len(data):
        yield data[place + length_size]
        place += length_size + int.from_bytes(data[place : place + length_size], "big")
