"""Slices of ever new simulated scrolls, to train on."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import cv2
import numpy as np
from numpy.typing import NDArray

from zarrmask.phantom.noise import Array, Field, enlarge, smoothstep
from zarrmask.phantom.photograph import photograph
from zarrmask.phantom.render import compose
from zarrmask.phantom.scanner import Scanner
from zarrmask.phantom.scroll import Look, Scroll, Section
from zarrmask.phantom.surroundings import Case, Film, Pores, distance_outside, hull

Mask = NDArray[np.bool_]
LEAST_CONTRAST = 12
"""Grey levels, of 256, between papyrus and what is close to it."""
LEAST_PIECE = 0.0015
"""Share of a slice that a piece takes at least; what is smaller is a speck."""


def simulate(
    rng: np.random.Generator,
    size: int | tuple[int, int],
    *,
    empty: float = 0.25,
    odd: float = 0.5,
    ends: float = 0.25,
) -> tuple[NDArray[np.uint8], list[Mask]]:
    """Draw one slice of a scroll that nobody has drawn before.

    Parameters
    ----------
    rng : numpy.random.Generator
        The only source of chance: equal states give equal slices.
    size : int or (int, int)
        The shorter side (the longer is drawn at random), or height and width, in pixels.
    empty : float
        Share of slices that hold no papyrus.
    odd : float
        Share of slices that are as odd as they may get; the rest is as scrolls in their cases
        usually look.
    ends : float
        Share, among odd slices, of what is found near a scroll's ends: C shapes and pieces.

    Returns
    -------
    image : ndarray of uint8, shape (h, w)
    instances : list of ndarray of bool, shape (h, w)
        One mask for each piece of papyrus, largest first; none on an empty slice.
    """
    height, width = size if isinstance(size, tuple) else _sides(rng, size)
    over = float(rng.choice([1.0, 1.5], p=[0.4, 0.6]))
    tall, wide = round(height * over), round(width * over)
    usual = bool(rng.random() < 1 - odd)
    look = _look(rng, height, width, usual, ends)
    if rng.random() < empty:  # case and film are left, as beyond a scroll's end
        look = replace(look, broken=1.0)
    section = _fibrous(rng, Scroll(rng, look).section(0.0, tall, wide), over)
    scanner = _scanner(rng, over, usual)
    image = _slice(rng, section, scanner, tall, wide, over, usual)
    if over > 1.0:
        image = np.asarray(
            cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.float32
        )
    share = (section.inside & scanner.sees(tall, wide)).astype(np.float32)
    truth = cv2.resize(share, (width, height), interpolation=cv2.INTER_AREA) > 0.5
    return _shown(rng, image, truth), _pieces(truth)


def _shown(rng: np.random.Generator, image: Array, truth: Mask) -> NDArray[np.uint8]:
    """Photograph a slice; one whose papyrus came out as black, or white, as all else, anew."""
    grey = photograph(rng, image)
    if not truth.any():
        return grey
    around = cv2.dilate(truth.astype(np.uint8), np.ones((25, 25), np.uint8)) > 0
    for _ in range(20):
        dark, bright = np.percentile(grey[around], [5, 95])
        if bright - dark >= LEAST_CONTRAST:
            break
        grey = photograph(rng, image)
    return grey


def _sides(rng: np.random.Generator, short: int) -> tuple[int, int]:
    """Height and width; mostly landscape up to 16:9, some portrait."""
    long = round(short * float(rng.choice([1.0, rng.uniform(1.0, 1.4), rng.uniform(1.4, 1.8)])))
    return (long, short) if rng.random() < 0.2 else (short, long)


def _look(rng: np.random.Generator, height: int, width: int, usual: bool, ends: float) -> Look:
    """Draw a look, from plain round rolls to heavily crushed ones."""
    u = rng.uniform
    if usual:
        fill, shake = float(u(0.4, 0.5)), 0.015
    else:
        fill = float(rng.choice([u(0.38, 0.5), u(0.15, 0.4), u(0.45, 0.6)], p=[0.7, 0.2, 0.1]))
        shake = 0.02 + 0.3 * max(0.0, 0.42 - fill)
    flat = float(np.exp(rng.normal(0, 0.06 if usual else 0.12)))
    axes = (min(fill * flat, 0.62), min(fill / flat, 0.62))
    centre = (0.5 + float(rng.normal(0, shake)), 0.5 + float(rng.normal(0, shake)))
    if not usual and rng.random() < 0.2:  # cut by the border
        centre = (float(u(0.1, 0.9)), float(u(0.1, 0.9)))
    elif rng.random() < 0.15:  # a detail of a larger slice
        axes = (axes[0] * float(u(1, 1.6)), axes[1] * float(u(1, 1.6)))
        centre = (centre[0] + float(rng.normal(0, 0.12)), centre[1] + float(rng.normal(0, 0.12)))
    turn = 0.0
    if rng.random() < 0.25:  # free rotation wants axes equal in pixels, not in shares
        turn = float(u(0, np.pi))
        side = min(height, width) * min(axes)
        axes = (side / width, side / height * float(u(0.5, 1.0)))
    crushed = float(rng.choice([0.0, 0.5, 1.0, 1.4], p=[0.05, 0.2, 0.4, 0.35]))
    end = rng.random() * 0.25 / ends if ends and not usual else 1.0
    mouth = float(u(0.3, 3.0)) if end < 0.14 else 0.0
    broken = float(u(0.15, 0.6)) if 0.1 < end < 0.25 else 0.0
    low, high = (0.0035, 0.01) if usual else (0.003, 0.03)
    pitch = float(np.exp(u(np.log(low), np.log(high))))
    return Look(
        centre=centre, axes=axes, turn=turn, corner=float(u(1.5, 3.0)),
        lobes=0.14 * crushed * float(u(0.2, 1)), folds=int(rng.integers(0, 11) * min(crushed, 1.0)),
        depth=0.4 * crushed * float(u(0.2, 1)), reach=float(np.exp(u(-1.2, 1.5))),
        warp=0.1 * crushed * float(u(0, 1)), pitch=pitch, crumple=float(u(0, 0.4) * u(0.1, 1)),
        streaks=int(rng.integers(96, 900)),
        lamination=float(u(0.05, 0.6 if usual else 0.8)),
        grain=float(u(0.3 if usual else 0.1, 0.9)),
        closeness=float(rng.normal(0.45, 0.15 if usual else 0.3)), opening=float(u(0.2, 1.2)),
        gaps=int(rng.integers(0, 5)), gape=float(rng.choice([1.0, u(1, 2.5)])),
        inclusions=float(rng.choice([0, u(0, 0.08)])),
        mouth=mouth, hollow=float(u(0, 0.6)), broken=broken,
    )  # fmt: skip


def _fibrous(rng: np.random.Generator, section: Section, over: float) -> Section:
    """Let the sheets' density differ from pixel to pixel; real ones are finer than drawn ones."""
    noise = np.empty(section.density.shape, np.float32)
    cv2.setRNGSeed(int(rng.integers(2**31)))
    cv2.randn(noise, 0.0, 1.0)
    noise = np.asarray(cv2.GaussianBlur(noise, (0, 0), 0.45 * over), np.float32)
    noise *= np.float32(rng.choice([0.0, rng.uniform(0, 0.4)]) / noise.std())
    return replace(section, density=section.density * np.clip(1 + noise, 0, 2))


def _slice(
    rng: np.random.Generator,
    section: Section,
    scanner: Scanner,
    tall: int,
    wide: int,
    over: float,
    usual: bool,
) -> Array:
    """Surround the section and look at it through a random scanner."""
    u = rng.uniform
    away = distance_outside(hull(section.whole))

    case = _case(rng, usual).draw(rng, away, section.angle)
    pores = _pores(rng, tall, wide, over, usual)

    film = np.zeros((tall, wide), np.uint8)
    for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.15, 0.55, 0.2, 0.1]))):
        _film(rng, over, usual).draw(film, away, 0.0)
    for _ in range(int(rng.integers(0, 3))):
        _thread(rng, film)

    texture = enlarge(
        np.float32(u(0, 0.03)) * rng.standard_normal((tall // 2, wide // 2), dtype=np.float32),
        tall, wide,
    )  # fmt: skip
    if rng.random() < 0.5:
        texture += enlarge(
            np.float32(u(0, 0.05)) * rng.standard_normal((9, 9), dtype=np.float32), tall, wide
        )
    crust = 1.0 + float(rng.choice([0.0, u(0, 1.0)]))
    image = compose(section, case, pores, film, scanner, texture, crust)
    return scanner.expose(scanner.shape(image), rng)


def _scanner(rng: np.random.Generator, over: float, usual: bool) -> Scanner:
    u = rng.uniform
    if usual:
        air = float(rng.normal(0.39, 0.03))
        contrast = float(np.exp(rng.normal(np.log(0.23), 0.12)))
        bright = float(u(0.85, 1.25))
        noise = float(np.exp(u(np.log(0.01), np.log(0.12))))
    else:
        air = max(float(rng.choice([rng.normal(0.39, 0.06), u(0.02, 0.5)])), 0.02)
        contrast = float(np.clip(np.exp(rng.normal(np.log(0.2), 0.5)), 0.05, 0.55))
        bright = float(rng.choice([u(0.85, 1.3), u(0.4, 2.2)]))
        noise = float(np.exp(u(np.log(0.01), np.log(0.35))))
    return Scanner(
        air=air, papyrus=air + contrast, case=air + contrast * bright,
        film=air + contrast * float(u(0.4, 1.4)), blur=float(u(0, 0.6)) * over,
        noise=contrast * noise * over ** 0.5, noise_grain=float(u(0, 1.0)),
        edge=float(rng.choice([0.0, u(0, 1.2)])),
        rings=float(rng.choice([0.0, u(0, 0.02)], p=[0.6, 0.4])), shading=float(u(0, 0.02)),
        view=float(rng.choice([0.0, u(0.95, 1.25)], p=[0.65, 0.35])),
        outside=float(rng.choice([0.0, air, air + 0.03])),
    )  # fmt: skip


def _case(rng: np.random.Generator, usual: bool) -> Case:
    u = rng.uniform
    if usual:
        return Case(
            kind="fitted", gap=float(rng.choice([u(0, 0.012), u(0, 0.05)])),
            thickness=float(u(0.05, 0.2)),
            bumps=float(rng.choice([u(0, 0.02), u(0, 0.1)])), slots=int(rng.integers(1, 5)),
            pieces=int(rng.integers(0, 5)), rough=float(u(0, 0.3)),
        )  # fmt: skip
    kind = str(rng.choice(
        ["fitted", "ring", "box", "clamp", "blocks", "none"],
        p=[0.22, 0.22, 0.14, 0.12, 0.1, 0.2],
    ))  # fmt: skip
    return Case(
        kind=kind, gap=float(rng.choice([0.0, u(0, 0.03), u(0, 0.12)])),
        thickness=float(u(0.03, 0.3)), bumps=float(rng.choice([0.0, u(0, 0.12)])),
        slots=int(rng.integers(0, 5)), pieces=0 if kind == "none" else int(rng.integers(0, 5)),
        rough=float(rng.choice([0.0, u(0, 0.35)])),
    )  # fmt: skip


def _pores(
    rng: np.random.Generator, tall: int, wide: int, over: float, usual: bool
) -> NDArray[np.uint8]:
    """Draw the case's pores: so many fine ones that they make a speckle, fewer large ones, none."""
    u = rng.uniform
    kind = rng.random()
    if kind < (0.6 if usual else 0.35):
        noise = np.empty((tall, wide), np.float32)
        cv2.setRNGSeed(int(rng.integers(2**31)))
        cv2.randn(noise, 0.0, 1.0)
        noise = np.asarray(cv2.GaussianBlur(noise, (0, 0), float(u(0.35, 0.9)) * over), np.float32)
        level = NormalDist(0, float(noise.std())).inv_cdf(float(np.exp(u(-4.6, -1.9))))
        solid = smoothstep(noise, 1.25 * level, 0.75 * level) * np.float32(255)
        return solid.astype(np.uint8)
    radius = float(np.exp(u(-0.9, 0.6))) * over
    number = 0.0 if kind > 0.8 else float(np.exp(u(5.5, 9.6))) / over**2
    return Pores(int(rng.integers(2**31)), number, radius).draw(0, tall, wide)


def _film(rng: np.random.Generator, over: float, usual: bool) -> Film:
    u = rng.uniform
    loops = int(rng.choice([0, 0, 1, 3]))
    curls = tuple((float(u(0, 1)), float(u(0.004, 0.02)), float(u(1, 6))) for _ in range(loops))
    return Film(
        Field(rng, (int(rng.integers(3, 12)),) * 2), float(rng.choice([u(0, 0.015), u(0, 0.07)])),
        float(u(0.5, 1.2 if usual else 2.2)) * over, curls,
        float(rng.choice([0.0, u(0, 0.7)])),
    )  # fmt: skip


def _thread(rng: np.random.Generator, drawn: NDArray[np.uint8]) -> None:
    """Draw a loose strand anywhere."""
    height, width = drawn.shape
    steps = rng.normal(0, min(height, width) * 0.06, (6, 2))
    line = rng.random(2) * (width, height) + np.cumsum(steps, axis=0)
    cv2.polylines(drawn, [line.astype(np.int32)], False, int(rng.integers(60, 255)), 1, cv2.LINE_AA)


def _pieces(truth: Mask) -> list[Mask]:
    """Split off the connected pieces of a mask that are not specks, largest first."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(truth.astype(np.uint8))
    areas = stats[:, cv2.CC_STAT_AREA]
    order = sorted(range(1, count), key=lambda i: -int(areas[i]))
    return [labels == i for i in order if areas[i] >= LEAST_PIECE * truth.size]
