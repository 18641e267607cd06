"""Files and bodies that nobody should send, made on the spot: what each is, and what it is answered."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from pathlib import Path

from tests.samples import write_jpeg_video
from tests.serve.samples import write_other

UNREADABLE = frozenset(("video_format", "video_decode", "no_video_stream", "video_empty", "video_too_large", "video_memory"))
"""What a broken file may be called."""


@dataclass(frozen=True)
class Hostile:
    """The bytes of an upload, and which codes are right; "ok" stands for an answer."""

    content: bytes
    codes: frozenset[str]


def hostile_files(good: bytes, good_path: Path, folder: Path) -> dict[str, Hostile]:
    """By name, what must be refused, and how. `good` are the bytes of the sound video in `good_path`, which lists point to."""
    return _no_videos() | _lists(good_path) | _bombs(folder) | _lies(good) | _cuts(good) | _flips(good) | _other_containers(folder)


def _no_videos() -> dict[str, Hostile]:
    noise = random.Random(0).randbytes(5000)
    files = {
        "one byte": b"\x00",
        "text": b"these are words, not pictures\n" * 20,
        "zeros": bytes(10_000),
        "noise": noise,
        "JSON": b'{"video": "https://example.org/clip.mp4"}',
        "HTML": b"<!doctype html><script>alert(1)</script>",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "ELF": b"\x7fELF\x02\x01\x01" + noise,
        "zip": b"PK\x03\x04" + noise,
        "gzip": b"\x1f\x8b\x08" + noise,
        "PNG": b"\x89PNG\r\n\x1a\n" + noise,
        "WAV": b"RIFF\x24\x00\x00\x00WAVEfmt " + noise,
        "pickle": b"cos\nsystem\n(S'id'\ntR.",
    }
    return {name: Hostile(content, frozenset(("video_format",))) for name, content in files.items()} | {
        "empty": Hostile(b"", frozenset(("video_empty",)))
    }


def _lists(good: Path) -> dict[str, Hostile]:
    """Lists of other files under a video's name. Each names a video that is really there: following it would give an answer."""
    dash = (
        f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet><Representation><BaseURL>{good}</BaseURL>'
    )
    files = {
        "HLS": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{good}\n#EXT-X-ENDLIST\n",
        "HLS by URL": f"#EXTM3U\n#EXTINF:1,\nfile://{good}\n#EXT-X-ENDLIST\n",
        "HLS of a service in the house": "#EXTM3U\n#EXTINF:1,\nhttp://169.254.169.254/latest/meta-data/\n#EXT-X-ENDLIST\n",
        "HLS by concat": f"#EXTM3U\n#EXTINF:1,\nconcat:{good}|/etc/passwd\n#EXT-X-ENDLIST\n",
        "HLS with a key file": f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="/etc/passwd"\n#EXTINF:1,\n{good}\n',
        "master playlist": f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{good}\n",
        "ffconcat": f"ffconcat version 1.0\nfile '{good}'\n",
        "concat after a byte order mark": f"\ufeffffconcat version 1.0\nfile {good}\n",
        "DASH": f"{dash}</Representation></AdaptationSet></Period></MPD>",
        "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "SMIL": f'<smil><body><video src="{good}"/></body></smil>',
        "XSPF": f"<playlist><trackList><track><location>file://{good}</location></track></trackList></playlist>",
        "RealMedia list": "[Reference]\nRef1=http://169.254.169.254/\n",
        "FFmpeg metadata": ";FFMETADATA1\ntitle=x\n",
        "subtitles": "1\n00:00:00,000 --> 00:00:01,000\nhello\n",
        "AviSynth": f'FFVideoSource("{good}")\n',
        "path": str(good),
        "protocol": f"concat:{good}|{good}",
    }
    return {name: Hostile(text.encode(), frozenset(("video_format",))) for name, text in files.items()}


def _bombs(folder: Path) -> dict[str, Hostile]:
    too_large = frozenset(("video_too_large",))
    return {
        "8K": Hostile(write_jpeg_video(folder / "8k.mkv", [(4320, 7680)] * 2, 500).read_bytes(), too_large),
        "40,000 frames": Hostile(write_jpeg_video(folder / "many.mkv", [(16, 16)] * 40_000, 1).read_bytes(), too_large),
        "two hours": Hostile(write_jpeg_video(folder / "long.mp4", [(64, 64)] * 120, 60_000).read_bytes(), too_large),
        "8K after a while": Hostile(
            write_jpeg_video(folder / "grows.mkv", [(64, 64)] * 4 + [(4320, 7680)] * 4, 1000).read_bytes(), too_large
        ),
        "a strip": Hostile(write_jpeg_video(folder / "strip.mkv", [(16, 8192)] * 4, 1000).read_bytes(), frozenset(("ok",))),
    }


def _lies(good: bytes) -> dict[str, Hostile]:
    """Headers that claim what is not so."""
    moov, mvhd, stsz, avcc = (good.index(name) for name in (b"moov", b"mvhd", b"stsz", b"avcC"))

    def patched(place: int, value: bytes) -> bytes:
        return good[:place] + value + good[place + len(value) :]

    huge = struct.pack(">I", 0x7FFFFFFF)
    files = {
        "hours by its header": patched(mvhd + 4 + 4 + 8 + 4, huge),
        "no time scale": patched(mvhd + 4 + 4 + 8, bytes(4)),
        "two billion samples": patched(stsz + 4 + 4 + 4, huge),
        "samples of two gigabytes": patched(stsz + 4 + 4, huge),
        "a box larger than the file": patched(moov - 4, huge),
        "a box of no size": patched(moov - 4, struct.pack(">I", 1)),
        "boxes in boxes": b"\x00\x00\x00\x08ftyp" + b"".join(struct.pack(">I", 8 * (5000 - i)) + b"moov" for i in range(5000)),
        "another codec": good.replace(b"avc1", b"hev1"),
        "a codec nobody knows": good.replace(b"avc1", b"zzzz"),
        "broken parameter sets": patched(avcc + 12, b"\xff" * 12),
        "a Matroska header alone": b"\x1a\x45\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xff",
        "an endless Matroska element": b"\x1a\x45\xdf\xa3\x84\x42\x86\x81\x01\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xfe",
        "an AVI of nothing": b"RIFF\xff\xff\xff\x7fAVI LIST\xff\xff\xff\x7fhdrl",
        "transport stream of nothing": (b"\x47\x1f\xff\x10" + b"\xff" * 184) * 50,
        "an FLV of nothing": b"FLV\x01\x05\x00\x00\x00\x09\x00\x00\x00\x00",
        "a GIF of 65535 x 65535": b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\xff\xff\xff\xff\x00\x02\x02D\x01\x00;",
    }
    return {name: Hostile(content, UNREADABLE | {"ok"}) for name, content in files.items()}


def _cuts(good: bytes) -> dict[str, Hostile]:
    places = [1, 7, 8, 32, 100, *(len(good) * share // 20 for share in range(1, 20))]
    return {f"cut after {place} bytes": Hostile(good[:place], UNREADABLE) for place in places}


def _flips(good: bytes) -> dict[str, Hostile]:
    """Some bits turned over, in the header or anywhere."""
    files = {}
    for seed in range(24):
        draw, content = random.Random(seed), bytearray(good)
        moov = good.index(b"moov")
        for _ in range(draw.choice((1, 4, 64))):
            content[draw.randrange(moov, len(good)) if seed % 2 else draw.randrange(len(good))] ^= 1 << draw.randrange(8)
        files[f"bits turned over, {seed}"] = Hostile(bytes(content), UNREADABLE | {"ok"})
    return files


def _other_containers(folder: Path) -> dict[str, Hostile]:
    """Cuts and flips of what is no MP4: much of such a file does not depend on a table, and may still be read."""
    files = {}
    for suffix in ("mkv", "avi", "ts", "webm", "mov", "mpg"):
        good = write_other(folder / f"other.{suffix}").read_bytes()
        files[f"{suffix}, sound"] = Hostile(good, frozenset(("ok",)))
        for share in (1, 5, 9):
            files[f"{suffix} cut after {share} tenths"] = Hostile(good[: len(good) * share // 10], UNREADABLE | {"ok"})
        for seed in range(6):
            draw, content = random.Random(seed), bytearray(good)
            for _ in range(draw.choice((1, 8, 200))):
                content[draw.randrange(len(good) if seed % 2 else 400)] ^= 1 << draw.randrange(8)
            files[f"{suffix} with bits turned over, {seed}"] = Hostile(bytes(content), UNREADABLE | {"ok"})
        files[f"{suffix} with an MP4's beginning"] = Hostile(b"\x00\x00\x00\x18ftypisom" + good[12:], UNREADABLE | {"ok"})
    return files
