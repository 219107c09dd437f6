"""Draw a scene as a small RGB image: sprites with jitter on a noisy grey ground."""

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from cirray.data.shapes.scenes import CELLS, COLOURS, SHAPES, SIZES, Scene

RGB = {
    "red": (220, 40, 40),
    "green": (40, 175, 60),
    "blue": (55, 85, 235),
    "yellow": (240, 225, 50),
    "purple": (155, 55, 200),
    "orange": (245, 135, 25),
    "cyan": (40, 215, 225),
    "white": (245, 245, 245),
}
_DIAMETER = {"small": 0.52, "large": 0.86}
_OVERSAMPLING = 8
_NOISE_SIGMA = 5.0
_GROUND = (30, 71)


def render(scene: Scene, seed: int, size: int = 48, clutter: int = 0) -> Image.Image:
    """The scene as a `size` x `size` RGB image, a function of (scene, seed, size, clutter)."""
    return Image.fromarray(render_array(scene, seed, size, clutter), "RGB")


def render_array(scene: Scene, seed: int, size: int = 48, clutter: int = 0) -> np.ndarray:
    """The scene as uint8 pixels, height x width x 3.

    Each sprite is pasted with up to one pixel of jitter per axis on a grey ground of level 30-70, with `clutter` small
    coloured specks between ground and sprites, then Gaussian noise of sigma 5 is added.
    """
    rng = np.random.default_rng([seed, *_codes(scene)])
    pixels_HWC = np.full((size, size, 3), float(rng.integers(*_GROUND)), dtype=np.float32)
    for _ in range(clutter):
        _speck(pixels_HWC, rng)
    for cell in scene.occupied:
        thing = scene.cells[cell]
        assert thing is not None
        _paste(pixels_HWC, _sprite(thing.shape, thing.size, size // 3), RGB[thing.colour], cell, rng)
    pixels_HWC += rng.standard_normal(pixels_HWC.shape, dtype=np.float32) * _NOISE_SIGMA
    return np.clip(np.rint(pixels_HWC), 0, 255).astype(np.uint8)


def _codes(scene: Scene) -> list[int]:
    codes = [0] * CELLS
    for cell in scene.occupied:
        thing = scene.cells[cell]
        assert thing is not None
        shape, size = SHAPES.index(thing.shape), SIZES.index(thing.size)
        codes[cell] = 1 + COLOURS.index(thing.colour) + len(COLOURS) * (shape + len(SHAPES) * size)
    return codes


def _speck(pixels_HWC: np.ndarray, rng: np.random.Generator) -> None:
    """A disc of 1/24 to 1/12 of the side, in one of the objects' colours, anywhere."""
    size = pixels_HWC.shape[0]
    side = max(2, round(size * rng.uniform(1 / 24, 1 / 12)))
    top, left = (int(value) for value in rng.integers(0, size - side + 1, size=2))
    colour = np.asarray(RGB[COLOURS[int(rng.integers(len(COLOURS)))]], dtype=np.float32)
    window = pixels_HWC[top : top + side, left : left + side]
    window += _disc(side)[..., None] * (colour - window)


def _paste(
    pixels_HWC: np.ndarray, mask_HW: np.ndarray, colour: tuple[int, int, int], cell: int, rng: np.random.Generator
) -> None:
    side, step = mask_HW.shape[0], pixels_HWC.shape[0] // 3
    margin = (step - side) // 2
    corner = [step * axis + margin + int(rng.integers(-1, 2)) for axis in divmod(cell, 3)]
    top, left = (min(max(value, 0), pixels_HWC.shape[0] - side) for value in corner)
    window = pixels_HWC[top : top + side, left : left + side]
    window += mask_HW[..., None] * (np.asarray(colour, dtype=np.float32) - window)


@lru_cache(maxsize=32)
def _disc(side: int) -> np.ndarray:
    """Coverage in [0, 1] of a disc, side x side."""
    canvas = Image.new("L", (side * _OVERSAMPLING,) * 2, 0)
    ImageDraw.Draw(canvas).ellipse((0, 0, *(side * _OVERSAMPLING - 1,) * 2), fill=255)
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX), dtype=np.float32) / 255.0


@lru_cache(maxsize=256)
def _sprite(shape: str, size: str, step: int) -> np.ndarray:
    """Anti-aliased coverage in [0, 1] of a shape, side x side, for cells of `step` pixels."""
    side = max(3, round(step * _DIAMETER[size]))
    canvas = Image.new("L", (side * _OVERSAMPLING,) * 2, 0)
    edge = side * _OVERSAMPLING - 1
    draw = ImageDraw.Draw(canvas)
    if shape == "circle":
        draw.ellipse((0, 0, edge, edge), fill=255)
    else:
        draw.polygon([(x * edge, y * edge) for x, y in _outline(shape)], fill=255)
    mask = np.asarray(canvas.resize((side, side), Image.Resampling.BOX), dtype=np.float32) / 255.0
    mask.setflags(write=False)
    return mask


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners in the unit square."""
    if shape == "square":
        return [(0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)]
    if shape == "triangle":
        return [(0.5, 0.0), (1.0, 0.94), (0.0, 0.94)]
    if shape == "diamond":
        return [(0.5, 0.0), (0.86, 0.5), (0.5, 1.0), (0.14, 0.5)]
    if shape == "cross":
        a, b = 0.33, 0.67
        return [(a, 0), (b, 0), (b, a), (1, a), (1, b), (b, b), (b, 1), (a, 1), (a, b), (0, b), (0, a), (a, a)]
    radii = (0.52, 0.21)
    corners = [(radii[k % 2], math.pi * k / 5) for k in range(10)]
    return [(0.5 + radius * math.sin(angle), 0.53 - radius * math.cos(angle)) for radius, angle in corners]
