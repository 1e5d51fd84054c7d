"""The place that a fixed camera looks at: surfaces, furniture, light, and what moves there without being an event."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from videollm_mod.world.actors import Wave
from videollm_mod.world.camera.config import CameraConfig
from videollm_mod.world.camera.looks import leafy, muted, wooden
from videollm_mod.world.camera.motion import Box, Place, content
from videollm_mod.world.camera.parts import Colour, Part, cone, slab

LIFE = 6.0  # seconds for which a speck is drawn; it has left the picture by then
TEXTURES = ("plain", "noise", "planks", "rays", "tiles", "carpet", "bricks", "stripes", "cloud")


@dataclass(frozen=True)
class Surface:
    """A band of the background from `top` to `bottom` (fractions of the side), with a texture in two colours."""

    top: float
    bottom: float
    texture: str
    first: Colour
    second: Colour
    grain: int  # seed of the pattern
    slope: float  # how much its upper edge falls from left to right


@dataclass(frozen=True)
class Fixture:
    """Something that stands or hangs there for good; walkers with feet above `base` on the picture pass behind it."""

    parts: tuple[Part, ...]
    base: float | None  # None: nobody ever passes behind it


@dataclass(frozen=True)
class Plant:
    """Leaves that sway."""

    leaves: tuple[tuple[Place, float, float, float, Colour], ...]  # root, angle, length, phase, colour
    rate: float  # hertz
    swing: float  # radians

    def parts(self, time: float) -> list[Part]:
        """The leaves at `time`."""
        parts = []
        for (x, y), angle, length, phase, colour in self.leaves:
            turn = angle + self.swing * math.sin(math.tau * self.rate * time + phase)
            tip = x + length * math.sin(turn), y - length * math.cos(turn)
            parts.append(cone((x, y), tip, 0.22 * length, 0.07 * length, colour))
        return parts


@dataclass(frozen=True)
class Screen:
    """A display that changes its colours at irregular moments."""

    box: Box
    rate: float  # changes per second, at most
    seed: int

    def colour(self, time: float) -> Colour:
        """Its colour at `time`."""
        rng = random.Random(self.seed * 7919 + int(time * self.rate))
        level = rng.uniform(20, 230)
        return level * rng.uniform(0.5, 1), level * rng.uniform(0.5, 1), level * rng.uniform(0.6, 1)

    def parts(self, time: float) -> list[Part]:
        """What it shows at `time`."""
        return [slab(*self.box, self.colour(time))]


@dataclass(frozen=True)
class Speck:
    """An insect or a leaf in the wind: a dot that crosses the picture now and then."""

    start: float
    speed: Place
    place: Place
    size: float
    colour: Colour
    flutter: float

    def at(self, time: float) -> Place:
        """Its place at `time`."""
        dt = time - self.start
        return (
            self.place[0] + self.speed[0] * dt + self.flutter * math.sin(9 * dt),
            self.place[1] + self.speed[1] * dt + self.flutter * math.cos(7 * dt),
        )

    def parts(self, time: float) -> list[Part]:
        """The dot at `time`; nothing before its start and long after."""
        place = self.at(time)
        return [cone(place, place, self.size, self.size, self.colour)] if 0 <= time - self.start < LIFE else []


@dataclass(frozen=True)
class Shade:
    """A soft dark patch that wanders to and fro at a border: the shadow of a tree, of somebody out of view."""

    middle: Place
    half: Place
    strength: float
    wave: Wave


@dataclass(frozen=True)
class Lamp:
    """A switch of the whole picture's brightness and tint from `time` on."""

    time: float
    gain: tuple[float, float, float]


@dataclass(frozen=True)
class Film:
    """How a camera turns light into a picture; values from 0 to 1."""

    gamma: float
    contrast: float  # about `pivot`
    pivot: float
    saturation: float
    blur: float  # of the whole picture: 0 = none, 1 = a binomial of three pixels; below 0 it is sharpened
    cast: tuple[float, float, float]  # of a wrong white balance, multiplies colours


@dataclass(frozen=True)
class Scene:
    """Everything about a place that is not the story."""

    aspect: tuple[int, int]
    surfaces: tuple[Surface, ...]  # from back to front
    fixtures: tuple[Fixture, ...]
    tint: tuple[float, float, float]  # of the camera, multiplies colours
    grey: bool  # a camera without colours
    glow: tuple[float, float, float, float]  # a lamp's light on the background: x, y, radius, strength
    vignette: float
    softness: float  # width of an edge in pixels at 112 pixels
    light: Place  # where the light comes from, length up to 1
    shadow: tuple[float, float, float]  # of things on what is behind them: x, y (sides), how strong (0..1)
    exposure: float  # seconds of motion blur
    noise: float  # 0..1 of the dial
    drift: Wave  # of the light, around 0
    auto: float  # auto-exposure: relative change of brightness when half of the picture is covered
    lamps: tuple[Lamp, ...]
    shake: tuple[Wave, Wave]
    jolt: float  # at this time the camera is pushed a little; negative for never
    plants: tuple[Plant, ...]
    screens: tuple[Screen, ...]
    specks: tuple[Speck, ...]
    shades: tuple[Shade, ...]
    film: Film | None = None  # None: as the light is

    @property
    def size(self) -> Place:
        """Width and height of the content."""
        return content(self.aspect)


def random_aspect(rng: random.Random, config: CameraConfig) -> tuple[int, int]:
    """16:9 about half of the time, if nobody wants others."""
    return rng.choice(config.aspects)


def random_film(rng: random.Random) -> Film:
    """Flat or hard, pale or gaudy or without colours, soft or sharpened, reddish or bluish."""
    film = Film(
        gamma=2 ** rng.uniform(-0.8, 0.8),
        contrast=rng.choice((rng.uniform(0.45, 1.0), rng.uniform(0.8, 1.3))),
        pivot=rng.uniform(0.25, 0.75),
        saturation=rng.choice((rng.uniform(0.0, 1.0), rng.uniform(0.7, 1.5))),
        blur=rng.choice((0.0, rng.random(), rng.uniform(-0.5, 0.0))),
        cast=(1.0, 1.0, 1.0),
    )
    warm, green = rng.choice(((0.0, 0.0), (rng.gauss(0, 0.15), rng.gauss(0, 0.04))))
    warm = min(max(warm, -0.4), 0.4)
    saturation = 0.0 if rng.random() < 0.15 else film.saturation
    return replace(film, saturation=saturation, cast=(1 + warm, 1 + green, 1 - warm))


def random_texture(rng: random.Random, *choices: str) -> str:
    """One of some textures, or any of them now and then."""
    return rng.choice(choices) if rng.random() < 0.9 else rng.choice(TEXTURES)


def random_surface(rng: random.Random, top: float, bottom: float, kind: str, slope: float = 0.0) -> Surface:
    """A band: "wall", "floor", "table", "grass", "road" or "any"."""
    first = {"floor": rng.choice((wooden, muted)), "table": rng.choice((wooden, muted)), "grass": leafy}.get(
        kind, muted
    )(rng)
    if kind == "road":
        first = muted(rng, 0.2, 0.55)
    if kind == "wall" and rng.random() < 0.5:
        first = muted(rng, 0.65, 1.0)
    contrast = rng.choice((rng.uniform(0.8, 0.97), rng.uniform(0.45, 0.95), rng.uniform(1.03, 1.35)))
    second = min(255.0, first[0] * contrast), min(255.0, first[1] * contrast), min(255.0, first[2] * contrast)
    if kind == "any" and rng.random() < 0.5:
        second = muted(rng)
    texture = {
        "wall": random_texture(rng, "plain", "plain", "cloud", "noise", "bricks", "stripes", "tiles"),
        "floor": random_texture(rng, "rays", "planks", "tiles", "carpet", "plain", "cloud"),
        "table": random_texture(rng, "plain", "cloud", "noise", "planks", "carpet", "stripes", "tiles"),
        "grass": random_texture(rng, "carpet", "noise", "cloud"),
        "road": random_texture(rng, "plain", "carpet", "cloud"),
        "any": rng.choice(TEXTURES),
    }[kind]
    return Surface(top, bottom, texture, first, second, rng.getrandbits(31), slope)


def random_scene(
    rng: random.Random,
    config: CameraConfig,
    aspect: tuple[int, int],
    surfaces: list[Surface],
    fixtures: list[Fixture],
    screens: list[Screen],
) -> Scene:
    """The light, the camera and the distractors of a place; screens are kept with the probability of a distractor."""
    width, height = content(aspect)

    def some(most: int) -> range:
        return range(rng.randint(1, most) if rng.random() < config.distractors else 0)

    def wave(amplitude: float, low: float, high: float) -> Wave:
        rates, phases = (rng.uniform(low, high), rng.uniform(low, high)), (rng.uniform(0, 6.28), rng.uniform(0, 6.28))
        return Wave(amplitude, rates, phases)

    warm = rng.gauss(0, 0.06)
    shaky = config.jitter * rng.random() if rng.random() < 0.25 else 0.0
    angle = rng.uniform(0, math.tau)
    return Scene(
        aspect=aspect,
        surfaces=tuple(surfaces),
        fixtures=tuple(fixtures),
        tint=(1 + warm, 1 + rng.gauss(0, 0.02), 1 - warm),
        grey=rng.random() < 0.05,
        glow=(
            rng.uniform(0, width),
            rng.uniform(0, height),
            rng.uniform(0.3, 1.0),
            rng.choice((0.0, rng.uniform(-0.2, 0.3))),
        ),
        vignette=rng.choice((0.0, rng.uniform(0, 0.35))),
        softness=rng.choice((1.0, rng.uniform(1.0, 1.5), rng.uniform(1.0, 2.2))),
        light=(math.cos(angle), math.sin(angle)),
        shadow=(rng.uniform(-0.05, 0.05), rng.uniform(-0.01, 0.05), rng.choice((0.0, rng.random()))),
        exposure=config.blur * rng.random(),
        noise=rng.choice((rng.uniform(0, 0.3), rng.random())),
        drift=wave(config.light * rng.uniform(0, 0.6), 0.02, 0.15),
        auto=config.light * rng.choice((0.0, rng.uniform(-2.0, 2.0))),
        lamps=tuple(_random_lamp(rng, config) for _ in some(2)) if rng.random() < 0.4 else (),
        shake=(wave(shaky, 0.3, 3.0), wave(shaky, 0.3, 3.0)),
        jolt=rng.uniform(0, config.seconds) if rng.random() < 0.06 else -10.0,
        plants=tuple(_random_plant(rng, width, height) for _ in some(2)),
        screens=tuple(screens) if rng.random() < config.distractors else (),
        specks=tuple(_random_speck(rng, width, height, config.seconds) for _ in some(4)),
        shades=tuple(
            Shade(
                (rng.choice((-0.1, rng.random(), 1.1)) * width, rng.choice((-0.1, rng.random(), 1.1)) * height),
                (rng.uniform(0.1, 0.4), rng.uniform(0.1, 0.4)),
                rng.uniform(0.1, 0.6),
                wave(rng.uniform(0.05, 0.3), 0.05, 0.5),
            )
            for _ in some(2)
        ),
    )


def _random_lamp(rng: random.Random, config: CameraConfig) -> Lamp:
    gain, warm = 1 + config.light * rng.uniform(-1.6, 1.6), config.light * rng.uniform(-0.3, 0.3)
    return Lamp(rng.uniform(0, config.seconds), (gain * (1 + warm), gain, gain * (1 - warm)))


def _random_plant(rng: random.Random, width: float, height: float) -> Plant:
    """In a corner or at a border, more often than in the middle."""
    x, y = rng.choice((0.03, 0.97, rng.random())) * width, rng.uniform(0.4, 1.05) * height
    colour, size = leafy(rng), rng.uniform(0.08, 0.22)
    leaves = []
    for _ in range(rng.randint(4, 8)):
        shade = rng.uniform(0.7, 1.3)
        dyed = colour[0] * shade, colour[1] * shade, colour[2] * shade
        root = x + rng.uniform(-0.2, 0.2) * size, y + rng.uniform(-0.1, 0.1) * size
        leaves.append((root, rng.uniform(-1.1, 1.1), size * rng.uniform(0.6, 1.1), rng.uniform(0, 6.28), dyed))
    return Plant(tuple(leaves), rng.uniform(0.1, 0.7), rng.choice((0.03, rng.uniform(0.05, 0.25))))


def _random_speck(rng: random.Random, width: float, height: float, seconds: float) -> Speck:
    angle, speed = rng.uniform(0, math.tau), rng.uniform(0.1, 0.9)
    grey = rng.choice((20.0, 60.0, 240.0))
    return Speck(
        rng.uniform(0, seconds),
        (speed * math.cos(angle), speed * math.sin(angle)),
        (rng.random() * width, rng.random() * height),
        rng.uniform(0.003, 0.011),
        (grey, grey, grey),
        rng.uniform(0, 0.03),
    )
