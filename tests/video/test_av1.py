"""AV1 headers, written bit by bit as the specification has them; what decoders make of real streams is in test_quick.py."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rbft.video.av1 import SequenceHeader, common_header, is_kept

PLAIN = SequenceHeader(force_screen_content_tools=2, force_integer_mv=2, num_frame_id_bits=0, num_order_hint_bits=7)


def obu(kind: int, *fields: tuple[int, int]) -> bytes:
    """An OBU with a size field, of `fields` (value, bits) and a trailing one bit."""
    bits = "".join(f"{value:0{count}b}" for value, count in fields if count) + "1"
    payload = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    return bytes([kind << 3 | 2, len(payload)]) + payload


def sequence(num_points: int = 1, timing: bool = False, still: bool = False) -> bytes:
    fields = [(0, 3), (int(still), 1), (0, 1), (int(timing), 1)]
    if timing:
        fields += [(1, 32), (30, 32), (1, 1), (0b00100, 5), (0, 1)]  # equal intervals of 4 ticks; no decoder model
    fields += [(0, 1), (num_points - 1, 5), (0, 12), (9, 5), (0, 1)]  # a level that has a tier
    fields += [(10, 4), (10, 4), (1919, 11), (1079, 11), (0, 1), (0b111, 3), (0b1111, 4), (1, 1), (0b11, 2), (1, 1), (1, 1), (6, 3)]
    return obu(1, *fields)


def frame(refresh: int, kind: int = 1, is_shown: bool = True, is_resilient: bool = False) -> bytes:
    """Of a stream that is `PLAIN`; screen content tools on."""
    fields = [(0, 1), (kind, 2), (int(is_shown), 1), *([] if is_shown else [(1, 1)]), (int(is_resilient), 1), (0, 1), (1, 1), (0, 1)]
    fields += [(0, 1), (5, 7), (3, 3 if kind == 1 and not is_resilient else 0), (refresh, 8)]
    return obu(6, *fields)


def test_the_sequence_header_is_read_with_timing_and_without() -> None:
    assert common_header([sequence()]) == PLAIN
    assert common_header([sequence(timing=True), b"", sequence()]) == PLAIN


def test_streams_that_are_not_plain_have_no_common_header() -> None:
    assert common_header([sequence(num_points=2)]) is None
    assert common_header([sequence(still=True)]) is None
    assert common_header([sequence(), sequence()[:-4]]) is None
    assert common_header([]) is None


def test_a_frame_is_kept_where_it_goes_into_a_buffer_or_is_shown_later() -> None:
    assert not is_kept(frame(0), PLAIN)
    assert not is_kept(frame(0, is_resilient=True), PLAIN)
    assert not is_kept(frame(0, kind=2), PLAIN), "intra only"
    assert is_kept(frame(1), PLAIN) and is_kept(frame(128), PLAIN)
    assert is_kept(frame(0, is_shown=False), PLAIN)
    assert is_kept(frame(0, kind=0), PLAIN) and is_kept(frame(0, kind=3), PLAIN)
    assert is_kept(obu(3, (1, 1), (4, 3)), PLAIN), "an existing one is shown"
    assert is_kept(frame(0) + frame(4), PLAIN)
    assert is_kept(b"", PLAIN) and is_kept(sequence() + frame(0), PLAIN)


@given(st.binary(max_size=40))
def test_any_bytes_are_answered(data: bytes) -> None:
    common_header([data])
    is_kept(data, PLAIN)
    is_kept(frame(0) + data, PLAIN)
