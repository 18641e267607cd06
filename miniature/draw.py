"""Pixels: sprites, places, motion, and the camera that spoils them. `render(plan)` is a pure function of the plan.

Drawn on a canvas of twice the frame's side and shrunk, so that sprites move by half pixels. Subjects differ by their parts, not by outline
alone: at 24 pixels an outline is all alike. Places differ by what stands in them, never by their tint, which is random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from miniature.world import ClipPlan, Domain

FRAME_SIDE = 84
"""Pixels; three merged patches of 28 a side."""
NUM_FRAMES = 8
_CANVAS = 2 * FRAME_SIDE
_SPRITE = 240

RGB = tuple[int, int, int]
PALETTE: dict[str, RGB] = {
    "black": (28, 28, 32),
    "blue": (35, 70, 215),
    "red": (220, 45, 40),
    "green": (65, 185, 75),
    "yellow": (245, 210, 40),
    "white": (246, 246, 246),
}
"""Apart in luminance too (29, 76, 97, 137, 201, 246), as an infrared camera leaves little else."""
_INK, _PAPER, _SKIN, _GLASS, _BEAK = (20, 20, 24), (238, 238, 232), (226, 178, 140), (170, 205, 220), (240, 140, 40)


@dataclass(frozen=True)
class Degradation:
    """What the camera does at severity 1; each effect grows in proportion to the severity. Tuned on development worlds, see README."""

    desaturation: float
    """Share of the colour lost: below 1, so that hue never vanishes."""
    gamma: float
    """Exponent is 1 + this x severity x U(0.3, 1): darker."""
    blur_px: float
    noise: float
    """Standard deviation, of 255."""
    tilt_deg: float
    """Largest turn of the camera; uniform within."""


CAMERAS: dict[Domain, Degradation] = {
    "general": Degradation(desaturation=0.8, gamma=0.9, blur_px=1.4, noise=26.0, tilt_deg=12.0),
    "target": Degradation(desaturation=0.1, gamma=1.75, blur_px=0.3, noise=3.0, tilt_deg=3.0),
}
"""The general domain (severity up to 0.15) has somewhat noisy cameras in daylight; the target's film in the dark."""


def render(plan: ClipPlan) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """(frames, boxes): uint8 RGB [8, 84, 84, 3], and the subject's box in each frame, float32 [8, 4] as x0, y0, x1, y1 in pixels."""
    rng, degradation = np.random.default_rng(plan.seed), CAMERAS[plan.domain]
    backdrop = _place(plan.slots.scene, rng)
    sprite = _subject(plan.slots.subject, _jitter(PALETTE[plan.slots.attribute], 10, rng), rng)
    path = _path(plan.slots.action, rng)
    camera = np.random.default_rng((*plan.seed, 1))
    angle = float(camera.uniform(-1, 1)) * degradation.tilt_deg * plan.severity
    frames, boxes = [], []
    for x, y, size in path:
        frame, box = _compose(backdrop, sprite, x, y, size)
        if angle:
            frame, box = _tilt(frame, box, angle)
        frames.append(np.asarray(frame.reduce(2), dtype=np.float32))
        boxes.append(np.clip(np.asarray(box, dtype=np.float32) / 2, 0, FRAME_SIDE))
    return _spoil(np.stack(frames), plan.severity, degradation, camera), np.stack(boxes)


# The camera


def _tilt(
    frame: Image.Image, box: tuple[float, float, float, float], angle_deg: float
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    pad = _CANVAS // 8
    padded = Image.fromarray(np.pad(np.asarray(frame), ((pad, pad), (pad, pad), (0, 0)), mode="edge"))
    turned = padded.rotate(angle_deg, resample=Image.Resampling.BILINEAR).crop((pad, pad, pad + _CANVAS, pad + _CANVAS))
    cos, sin, middle = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg)), _CANVAS / 2
    x0, y0, x1, y1 = (v - middle for v in box)
    xs = [cos * x + sin * y + middle for x in (x0, x1) for y in (y0, y1)]
    ys = [-sin * x + cos * y + middle for x in (x0, x1) for y in (y0, y1)]
    return turned, (min(xs), min(ys), max(xs), max(ys))


def _spoil(frames: NDArray[np.float32], severity: float, degradation: Degradation, rng: np.random.Generator) -> NDArray[np.uint8]:
    gamma_share, blur_share, noise_share = rng.uniform(0.3, 1), rng.uniform(0.5, 1), rng.uniform(0.5, 1)
    luminance = frames @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    keep = np.float32(1 - degradation.desaturation * severity)
    frames = luminance[..., None] + keep * (frames - luminance[..., None])
    exponent = np.float32(1 + degradation.gamma * severity * gamma_share)
    frames = np.float32(255) * np.power(np.clip(frames, 0, 255) / np.float32(255), exponent).astype(np.float32, copy=False)
    if severity:
        blur = ImageFilter.GaussianBlur(degradation.blur_px * severity * blur_share)
        frames = np.stack([np.asarray(Image.fromarray(f.astype(np.uint8)).filter(blur), dtype=np.float32) for f in frames])
        # Half of the noise is grey, as a sensor's is in the dark.
        sigma = degradation.noise * severity * noise_share
        grey, colour = rng.standard_normal((*frames.shape[:3], 1), np.float32), rng.standard_normal(frames.shape, np.float32)
        frames = frames + np.float32(sigma) * np.float32(0.7) * (grey + colour)
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


# The motion


def _path(action: str, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Centre x, centre y and size of the sprite in each frame, in shares of the frame. Neither start nor end alone tells the action."""
    u = np.linspace(0, 1, NUM_FRAMES)
    size = np.full(NUM_FRAMES, rng.uniform(0.28, 0.36))
    x, y = np.full(NUM_FRAMES, rng.uniform(0.32, 0.68)), np.full(NUM_FRAMES, rng.uniform(0.38, 0.66))
    span, start = rng.uniform(0.42, 0.6), rng.uniform(0, 1)
    sweep = 0.18 + start * (0.64 - span) + span * u
    if action == "right":
        x = sweep
    elif action == "left":
        x = sweep[::-1]
    elif action == "down":
        y = sweep
    elif action == "up":
        y = sweep[::-1]
    elif action in ("closer", "away"):
        near, far = rng.uniform(0.44, 0.52), rng.uniform(0.15, 0.19)
        size = far * (near / far) ** (u if action == "closer" else 1 - u)
        x, y = np.full(NUM_FRAMES, rng.uniform(0.38, 0.62)), np.full(NUM_FRAMES, rng.uniform(0.42, 0.6))
    elif action == "circles":
        radius, phase, way = rng.uniform(0.16, 0.22), rng.uniform(0, 2 * math.pi), rng.choice((-1, 1))
        turn = phase + way * 2 * math.pi * np.arange(NUM_FRAMES) / NUM_FRAMES
        x, y = rng.uniform(0.42, 0.58) + radius * np.cos(turn), rng.uniform(0.44, 0.58) + radius * np.sin(turn)
    return [(float(a), float(b), float(c)) for a, b, c in zip(x, y, size, strict=True)]


def _compose(
    backdrop: Image.Image, sprite: Image.Image, x: float, y: float, size: float
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    side = max(8, round(size * _CANVAS))
    small = sprite.resize((side, side), Image.Resampling.BOX)
    left, top = round(x * _CANVAS - side / 2), round(y * _CANVAS - side / 2)
    frame = backdrop.copy()
    frame.paste(small, (left, top), small)
    x0, y0, x1, y1 = small.getbbox() or (0, 0, side, side)
    return frame, (left + x0, top + y0, left + x1, top + y1)


# The subjects


def _jitter(colour: RGB, amount: int, rng: np.random.Generator) -> RGB:
    r, g, b = (int(np.clip(c + rng.integers(-amount, amount + 1), 0, 255)) for c in colour)
    return r, g, b


def _subject(subject: str, body: RGB, rng: np.random.Generator) -> Image.Image:
    """An RGBA sprite of 240 x 240, facing either way: its facing says nothing about where it goes."""
    image = Image.new("RGBA", (_SPRITE, _SPRITE), (*body, 0))
    edge = _INK if sum(body) > 200 else (150, 150, 155)
    _SUBJECTS[subject](ImageDraw.Draw(image), body, edge)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def _person(d: ImageDraw.ImageDraw, body: RGB, edge: RGB) -> None:
    d.rectangle((84, 168, 112, 236), fill=(70, 60, 55))
    d.rectangle((128, 168, 156, 236), fill=(70, 60, 55))
    d.polygon([(70, 84), (170, 84), (206, 160), (180, 172), (160, 130), (160, 180), (80, 180), (80, 130), (60, 172), (34, 160)], fill=body)
    d.line(
        [(70, 84), (170, 84), (206, 160), (180, 172), (160, 130), (160, 180), (80, 180), (80, 130), (60, 172), (34, 160), (70, 84)], edge, 6
    )
    d.ellipse((82, 6, 158, 86), fill=_SKIN, outline=_INK, width=4)
    d.pieslice((78, 0, 162, 76), 180, 360, fill=(60, 35, 20))
    d.ellipse((100, 44, 110, 56), fill=_INK)
    d.ellipse((130, 44, 140, 56), fill=_INK)


def _robot(d: ImageDraw.ImageDraw, body: RGB, edge: RGB) -> None:
    d.line((120, 4, 120, 40), fill=_PAPER, width=12)
    d.rectangle((52, 32, 188, 104), fill=body, outline=edge, width=7)
    d.rectangle((70, 50, 106, 84), fill=_PAPER)
    d.rectangle((134, 50, 170, 84), fill=_PAPER)
    d.rectangle((84, 58, 100, 78), fill=_INK)
    d.rectangle((148, 58, 164, 78), fill=_INK)
    d.rectangle((28, 112, 212, 200), fill=body, outline=edge, width=7)
    d.rectangle((76, 130, 164, 182), fill=_INK)
    for x in (88, 112, 136):
        d.rectangle((x, 140, x + 14, 172), fill=_PAPER)
    d.rectangle((20, 204, 220, 238), fill=_INK, outline=(150, 150, 155), width=6)


def _dog(d: ImageDraw.ImageDraw, body: RGB, edge: RGB) -> None:
    for x in (44, 76, 132, 162):
        d.rectangle((x, 160, x + 20, 224), fill=body, outline=edge, width=5)
        d.rectangle((x, 212, x + 20, 228), fill=_PAPER)
    d.line([(44, 112), (10, 56)], fill=edge, width=24)
    d.line([(44, 112), (12, 60)], fill=body, width=14)
    d.rounded_rectangle((30, 96, 190, 174), 30, fill=body, outline=edge, width=6)
    d.ellipse((74, 112, 130, 160), fill=(120, 80, 50))
    d.rounded_rectangle((148, 36, 216, 120), 22, fill=body, outline=edge, width=6)
    d.rounded_rectangle((186, 74, 238, 116), 14, fill=_PAPER, outline=_INK, width=4)
    d.ellipse((220, 74, 240, 94), fill=_INK)
    d.polygon([(146, 30), (176, 40), (160, 104), (138, 92)], fill=(90, 55, 35))
    d.ellipse((186, 50, 204, 70), fill=_PAPER, outline=_INK, width=4)


def _bird(d: ImageDraw.ImageDraw, body: RGB, edge: RGB) -> None:
    d.line((104, 190, 96, 236), fill=_BEAK, width=12)
    d.line((140, 190, 148, 236), fill=_BEAK, width=12)
    d.polygon([(52, 130), (0, 96), (0, 160)], fill=body, outline=edge, width=6)
    d.ellipse((36, 70, 188, 204), fill=body, outline=edge, width=6)
    d.ellipse((116, 10, 204, 100), fill=body, outline=edge, width=6)
    d.polygon([(196, 34), (240, 58), (196, 80)], fill=_BEAK, outline=_INK, width=3)
    d.polygon([(70, 100), (150, 108), (60, 186)], fill=_PAPER, outline=_INK, width=5)
    d.line((80, 128, 112, 132), fill=_INK, width=6)
    d.line((76, 150, 96, 152), fill=_INK, width=6)
    d.ellipse((152, 34, 182, 64), fill=_PAPER, outline=_INK, width=5)
    d.ellipse((162, 44, 174, 56), fill=_INK)


def _car(d: ImageDraw.ImageDraw, body: RGB, edge: RGB) -> None:
    d.polygon([(52, 116), (84, 60), (164, 60), (200, 116)], fill=body, outline=edge, width=7)
    d.polygon([(72, 112), (92, 74), (118, 74), (118, 112)], fill=_GLASS)
    d.polygon([(130, 112), (130, 74), (156, 74), (180, 112)], fill=_GLASS)
    d.rounded_rectangle((4, 110, 236, 174), 18, fill=body, outline=edge, width=7)
    d.rectangle((214, 122, 236, 142), fill=_PAPER)
    d.rectangle((4, 122, 20, 142), fill=(170, 30, 30))
    for x in (28, 146):
        d.ellipse((x, 142, x + 66, 208), fill=_INK, outline=(120, 120, 125), width=5)
        d.ellipse((x + 21, 163, x + 45, 187), fill=_PAPER)


def _drone(d: ImageDraw.ImageDraw, body: RGB, edge: RGB) -> None:
    d.line((28, 66, 212, 66), fill=edge, width=16)
    d.line((40, 66, 100, 130), fill=edge, width=16)
    d.line((200, 66, 140, 130), fill=edge, width=16)
    for x in (0, 140):
        d.ellipse((x, 34, x + 100, 62), fill=_PAPER, outline=_INK, width=5)
    d.ellipse((66, 84, 174, 182), fill=body, outline=edge, width=7)
    d.ellipse((98, 116, 142, 160), fill=_INK, outline=_PAPER, width=6)
    d.line([(76, 170), (48, 222), (20, 222)], fill=edge, width=12)
    d.line([(164, 170), (192, 222), (220, 222)], fill=edge, width=12)


_SUBJECTS = {"person": _person, "robot": _robot, "dog": _dog, "bird": _bird, "car": _car, "drone": _drone}


# The places


def _tone(rng: np.random.Generator, lightness: float) -> RGB:
    """A pale colour of any hue: a place's tint must not give it away."""
    tint = rng.uniform(-14, 14, 3)
    r, g, b = (int(np.clip(lightness * 255 + t, 0, 255)) for t in tint)
    return r, g, b


def _place(scene: str, rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (_CANVAS, _CANVAS), _tone(rng, rng.uniform(0.5, 0.62)))
    dark, light = _tone(rng, rng.uniform(0.34, 0.42)), _tone(rng, rng.uniform(0.7, 0.78))
    _PLACES[scene](ImageDraw.Draw(image), dark, light, int(rng.integers(-6, 7)), int(rng.integers(-5, 6)))
    image = image.filter(ImageFilter.GaussianBlur(0.8))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def _driveway(d: ImageDraw.ImageDraw, dark: RGB, light: RGB, dx: int, dy: int) -> None:
    """A garage door with panels, and a road that opens towards the camera."""
    d.polygon([(56 + dx, 66 + dy), (112 + dx, 66 + dy), (164, 168), (4, 168)], fill=dark)
    for k in range(4):
        y = 74 + dy + 26 * k
        d.polygon([(82 + dx, y), (86 + dx, y), (88 + dx, y + 13), (80 + dx, y + 13)], fill=light)
    d.rectangle((44 + dx, 10 + dy, 124 + dx, 66 + dy), fill=light, outline=dark, width=4)
    for k in range(1, 4):
        d.line((44 + dx, 10 + dy + 14 * k, 124 + dx, 10 + dy + 14 * k), fill=dark, width=3)


def _garden(d: ImageDraw.ImageDraw, dark: RGB, light: RGB, dx: int, dy: int) -> None:
    """A picket fence along the whole width, and two trees."""
    for x in range(-8 + dx, 176, 18):
        d.polygon([(x, 92 + dy), (x, 52 + dy), (x + 6, 44 + dy), (x + 12, 52 + dy), (x + 12, 92 + dy)], fill=light)
    d.line((0, 64 + dy, 168, 64 + dy), fill=light, width=5)
    d.line((0, 82 + dy, 168, 82 + dy), fill=light, width=5)
    for x in (24 + dx, 142 + dx):
        d.rectangle((x - 5, 60 + dy, x + 5, 112 + dy), fill=dark)
        d.ellipse((x - 24, 4 + dy, x + 24, 66 + dy), fill=dark)
    for x, y in ((12, 130), (40, 150), (70, 138), (100, 156), (130, 134), (156, 150), (24, 162), (118, 118)):
        d.line([(x + dx - 4, y - 9), (x + dx, y), (x + dx + 4, y - 9)], fill=dark, width=3)


def _kitchen(d: ImageDraw.ImageDraw, dark: RGB, light: RGB, dx: int, dy: int) -> None:
    """Cupboards with knobs above, a chequered floor below."""
    for k in range(-1, 4):
        x = 48 * k + dx
        d.rectangle((x + 2, 6 + dy, x + 44, 54 + dy), fill=light, outline=dark, width=4)
        d.ellipse((x + 32, 40 + dy, x + 40, 48 + dy), fill=dark)
    d.rectangle((0, 60 + dy, 168, 68 + dy), fill=dark)
    for row, y in enumerate(range(104 + dy, 168, 22)):
        for k in range(-1, 8):
            x = 24 * k + dx
            d.rectangle((x, y, x + 23, y + 21), fill=dark if (k + row) % 2 else light)


def _porch(d: ImageDraw.ImageDraw, dark: RGB, light: RGB, dx: int, dy: int) -> None:
    """A roof on two columns, a door between them, steps below."""
    d.polygon([(0, 34 + dy), (84 + dx, -2 + dy), (168, 34 + dy)], fill=dark)
    d.rectangle((66 + dx, 46 + dy, 106 + dx, 122 + dy), fill=dark)
    d.ellipse((96 + dx, 82 + dy, 103 + dx, 89 + dy), fill=light)
    for x in (14 + dx, 136 + dx):
        d.rectangle((x, 34 + dy, x + 18, 126 + dy), fill=light)
        d.rectangle((x - 5, 34 + dy, x + 23, 42 + dy), fill=light)
    for k in range(3):
        d.rectangle((0, 126 + dy + 14 * k, 168, 131 + dy + 14 * k), fill=dark)
        d.rectangle((0, 131 + dy + 14 * k, 168, 137 + dy + 14 * k), fill=light)


def _hallway(d: ImageDraw.ImageDraw, dark: RGB, light: RGB, dx: int, dy: int) -> None:
    """A corridor that runs away from the camera: four lines to the corners, frames within frames."""
    x0, y0, x1, y1 = 62 + dx, 56 + dy, 106 + dx, 100 + dy
    d.polygon([(0, 0), (168, 0), (x1, y0), (x0, y0)], fill=light)
    d.polygon([(0, 168), (168, 168), (x1, y1), (x0, y1)], fill=dark)
    d.rectangle((x0, y0, x1, y1), fill=light, outline=dark, width=4)
    for corner, inner in (((0, 0), (x0, y0)), ((168, 0), (x1, y0)), ((0, 168), (x0, y1)), ((168, 168), (x1, y1))):
        d.line([corner, inner], fill=dark, width=4)
    d.polygon([(14, 60), (34, 64), (34, 128), (14, 148)], outline=dark, width=4)
    d.polygon([(154, 60), (134, 64), (134, 128), (154, 148)], outline=dark, width=4)


_PLACES = {"driveway": _driveway, "garden": _garden, "kitchen": _kitchen, "porch": _porch, "hallway": _hallway}
