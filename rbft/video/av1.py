"""As much of AV1's bitstream as tells whether other frames refer to one: sequence and frame headers, up to the buffers a frame is kept in.

Source: AV1 Bitstream & Decoding Process Specification, 2019-01-08; the sections are named where they are followed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME = 1, 3, 6
"""Of `obu_type` (6.2.2)."""
_KEY_FRAME, _INTER_FRAME, _SWITCH_FRAME = 0, 1, 3
"""Of `frame_type` (6.8.2)."""
_SELECT = 2
"""A tool that each frame header says for itself."""


class _UnreadableError(Exception):
    """Not what this reader knows, or cut short."""


@dataclass(frozen=True)
class SequenceHeader:
    """What the frame headers after it cannot be read without."""

    force_screen_content_tools: int
    force_integer_mv: int
    num_frame_id_bits: int
    """0 if frames have no ids."""
    num_order_hint_bits: int


def common_header(chunks: Iterable[bytes]) -> SequenceHeader | None:
    """The sequence header that all those in `chunks` (OBUs) are; None if there is none, they differ, or the stream is no plain one: one
    operating point, no decoder model, no still picture."""
    try:
        found = {_sequence_header(bits) for chunk in chunks for kind, bits in _obus(chunk) if kind == _SEQUENCE_HEADER}
    except _UnreadableError:
        return None
    return found.pop() if len(found) == 1 else None


def is_kept(data: bytes, sequence: SequenceHeader) -> bool:
    """Whether a frame in the temporal unit `data` may be referred to by another unit; True where that cannot be told."""
    num_frames = 0
    try:
        for kind, bits in _obus(data):
            if kind == _SEQUENCE_HEADER:
                return True
            if kind in (_FRAME_HEADER, _FRAME):
                num_frames += 1
                if _is_frame_kept(bits, sequence):
                    return True
    except _UnreadableError:
        return True
    return num_frames == 0


class _Bits:
    """Reads bits, the highest of a byte first."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def take(self, count: int) -> int:
        """f(count) of the specification (4.10.2)."""
        end = self._place + count
        if end > 8 * len(self._data):
            raise _UnreadableError
        last = -(-end // 8)
        value = int.from_bytes(self._data[self._place // 8 : last], "big") >> (8 * last - end)
        self._place = end
        return value & ((1 << count) - 1)


def _obus(data: bytes) -> Iterator[tuple[int, _Bits]]:
    """The type and the payload of each OBU (5.3)."""
    place = 0
    while place < len(data):
        head = data[place]
        place += 2 if head & 4 else 1
        size = len(data) - place
        if head & 2:
            size, place = _leb128(data, place)
        if size < 0 or place + size > len(data):
            raise _UnreadableError
        # Headers are short: what follows is the frame itself.
        yield head >> 3 & 15, _Bits(data[place : place + min(size, 64)])
        place += size


def _leb128(data: bytes, place: int) -> tuple[int, int]:
    """The number at `place`, and where it ends (4.10.5)."""
    value = 0
    for i, byte in enumerate(data[place : place + 8]):
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value, place + i + 1
    raise _UnreadableError


def _sequence_header(bits: _Bits) -> SequenceHeader:
    """5.5.1"""
    bits.take(3)  # seq_profile
    if bits.take(2):  # still_picture, reduced_still_picture_header
        raise _UnreadableError
    if bits.take(1):  # timing_info_present_flag
        bits.take(64)
        if bits.take(1):  # equal_picture_interval
            num_zeros = 0
            while not bits.take(1):
                num_zeros += 1
            bits.take(num_zeros)  # num_ticks_per_picture_minus_1 (4.10.3)
        if bits.take(1):  # decoder_model_info_present_flag
            raise _UnreadableError
    has_display_delay = bits.take(1)
    if bits.take(5):  # operating_points_cnt_minus_1
        raise _UnreadableError
    bits.take(12)  # operating_point_idc
    if bits.take(5) > 7:  # seq_level_idx
        bits.take(1)
    if has_display_delay and bits.take(1):
        bits.take(4)
    num_width_bits, num_height_bits = bits.take(4) + 1, bits.take(4) + 1
    bits.take(num_width_bits + num_height_bits)
    num_frame_id_bits = bits.take(4) + bits.take(3) + 3 if bits.take(1) else 0
    bits.take(3)  # use_128x128_superblock, enable_filter_intra, enable_intra_edge_filter
    bits.take(4)  # enable_interintra_compound, enable_masked_compound, enable_warped_motion, enable_dual_filter
    has_order_hint = bits.take(1)
    if has_order_hint:
        bits.take(2)  # enable_jnt_comp, enable_ref_frame_mvs
    screen_content = _SELECT if bits.take(1) else bits.take(1)
    integer_mv = _SELECT
    if screen_content:
        integer_mv = _SELECT if bits.take(1) else bits.take(1)
    return SequenceHeader(screen_content, integer_mv, num_frame_id_bits, bits.take(3) + 1 if has_order_hint else 0)


def _is_frame_kept(bits: _Bits, sequence: SequenceHeader) -> bool:
    """5.9.2, up to refresh_frame_flags."""
    if bits.take(1):  # show_existing_frame: that of a key frame fills all buffers
        return True
    kind, is_shown = bits.take(2), bits.take(1)
    if not is_shown:
        return True  # it is shown later
    if kind in (_KEY_FRAME, _SWITCH_FRAME):
        return True
    is_resilient = bits.take(1)
    bits.take(1)  # disable_cdf_update
    screen_content = bits.take(1) if sequence.force_screen_content_tools == _SELECT else sequence.force_screen_content_tools
    if screen_content and sequence.force_integer_mv == _SELECT:
        bits.take(1)
    bits.take(sequence.num_frame_id_bits)
    bits.take(1)  # frame_size_override_flag
    bits.take(sequence.num_order_hint_bits)
    if kind == _INTER_FRAME and not is_resilient:
        bits.take(3)  # primary_ref_frame
    return bits.take(8) != 0  # refresh_frame_flags
