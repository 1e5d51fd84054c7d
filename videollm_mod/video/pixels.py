"""A decoded video frame -> the RGB picture that a person would see: matrix, range, HDR, alpha, pixel shape, rotation.

HDR (PQ of SMPTE ST 2084, HLG of ARIB STD-B67, ITU-R BT.2100): light relative to the 203 cd/m² reference white of ITU-R
BT.2408, BT.2020 -> BT.709 primaries, highlights rolled off smoothly, sRGB curve. Other wide-gamut video gets the right
matrix and range only.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import VideoReformatter

MATRIX_BT709, MATRIX_UNSPECIFIED, PRIMARIES_UNSPECIFIED, PRIMARIES_BT2020 = 1, 2, 2, 9  # ISO/IEC 23091-2 codes
TRANSFER_PQ, TRANSFER_HLG = 16, 18
REFERENCE_WHITE = 203.0  # cd/m², what a white page emits in HDR video; comes out as 95 % white
KNEE = 0.8  # of reference white; darker stays as it is, brighter is compressed into the rest
BT2020_TO_BT709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)


Turn = tuple[bool, bool, bool]  # transpose, then flip left-right, then flip up-down


def to_rgb(
    frame: av.VideoFrame,
    reformatter: VideoReformatter,
    pixel_aspect: float = 1.0,
    turn: Turn = (False, False, False),
) -> np.ndarray:
    """(height, width, 3) uint8 sRGB, contiguous, and upright if `turn` is the frame's `orientation`.

    pixel_aspect: width of a stored pixel over its height; the picture is widened to square pixels. Transparent pixels
    lie over black. YUV without a stated matrix is read as players do: BT.709 from 720 lines or 1280 columns on, else
    BT.601.
    """
    hdr = frame.color_trc in (TRANSFER_PQ, TRANSFER_HLG)
    alpha = not hdr and any(component.is_alpha for component in frame.format.components)
    unstated = frame.colorspace == MATRIX_UNSPECIFIED and (frame.height >= 720 or frame.width >= 1280)
    converted = reformatter.reformat(
        frame,
        width=max(1, round(frame.width * pixel_aspect)),
        format="rgb48le" if hdr else "rgba" if alpha else "rgb24",
        src_colorspace=MATRIX_BT709 if unstated else None,
    )
    image = converted.to_ndarray()  # (height, width, 3 or 4) uint8 or uint16
    if hdr:
        primaries = frame.color_primaries
        image = _hdr_to_srgb(image, frame.color_trc, primaries in (PRIMARIES_BT2020, PRIMARIES_UNSPECIFIED))
    elif alpha:
        image = over_black(image)
    return np.ascontiguousarray(_upright(image, *turn))


def over_black(rgba: np.ndarray) -> np.ndarray:
    """(height, width, 4) uint8 with straight alpha -> (height, width, 3) uint8 over black."""
    weighted = rgba[..., :3].astype(np.uint16) * rgba[..., 3:]
    return ((weighted + 127) // 255).astype(np.uint8)


def orientation(frame: av.VideoFrame) -> Turn:
    """What makes the stored picture upright.

    Reads the display matrix that the container or the bit stream gives: x' = a x + c y, y' = b x + d y, of which any
    other angle than the four right ones is taken to the nearest. Looking at `side_data` ties the frame into a cycle
    of references, so that its memory waits for the garbage collector: ask once per video, not once per frame.
    """
    side_data: Any = frame.side_data  # declared as a dict of strings, in truth a sequence of buffers with a type
    matrix = [bytes(data) for data in side_data if data.type == SideDataType.DISPLAYMATRIX]
    if not matrix:
        return False, False, False
    a, b, _, c, d = struct.unpack("=5i", matrix[0][:20])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def _upright(image: np.ndarray, transpose: bool, flip_x: bool, flip_y: bool) -> np.ndarray:
    if transpose:
        image = image.swapaxes(0, 1)
    if flip_x:
        image = image[:, ::-1]
    return image[::-1] if flip_y else image


def _hdr_to_srgb(signal: np.ndarray, transfer: int, wide: bool) -> np.ndarray:
    """(height, width, 3) uint16 full-range R'G'B' -> (height, width, 3) uint8 sRGB; `wide`: BT.2020 primaries."""
    light = _light(transfer)[signal >> 6]  # (height, width, 3) float32, 1.0 = reference white
    if transfer == TRANSFER_HLG:  # scene light so far; BT.2100's OOTF, gamma 1.2, for a 1000 cd/m² display
        luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        light *= (1000.0 / REFERENCE_WHITE) * np.power(luminance, 0.2, dtype=np.float32)[..., None]
    if wide:
        light = np.maximum(light @ BT2020_TO_BT709.T, 0.0)
    brightest = light.max(axis=-1, keepdims=True)
    over = np.maximum(brightest - KNEE, 0.0) / (1 - KNEE)
    rolled = np.minimum(brightest, KNEE) + (1 - KNEE) * over / (1 + over)  # slope 1 at the knee, below 1 for ever
    light *= rolled / np.maximum(brightest, 1e-6)  # one factor for all three channels keeps the hue
    return _srgb_of_root()[(np.sqrt(light, out=light) * 4095 + 0.5).astype(np.uint16)]


@cache
def _srgb_of_root() -> np.ndarray:
    """(4096,) uint8: the sRGB level of light (i / 4095)²; the root keeps dark levels apart, and a table is quick."""
    light = (np.arange(4096) / 4095) ** 2
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (curve * 255 + 0.5).astype(np.uint8)


@cache
def _light(transfer: int) -> np.ndarray:
    """(1024,) float32: the light of each 10-bit signal; PQ in reference whites, HLG as scene light from 0 to 1."""
    signal = np.arange(1024) / 1023
    if transfer == TRANSFER_PQ:
        root = signal ** (1 / 78.84375)
        nits = 10000 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
        return (nits / REFERENCE_WHITE).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)
