"""Plain pictures of figures, drawn with Pillow: axes, stacked bars, points with intervals, timelines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from radvlm_edge.errors import OutputError

INK, FAINT, PAPER = "#1b1f24", "#d0d7de", "#ffffff"
COLOURS = (
    "#0969da",
    "#bf8700",
    "#1a7f37",
    "#cf222e",
    "#8250df",
    "#57606a",
    "#bf3989",
    "#953800",
    "#3192aa",
    "#2d333b",
)
"""Distinguishable in the order given, also printed grey."""
FONT_PX = 15
LINE_PX = 22


@dataclass(frozen=True)
class Point:
    """One choice in a trade-off."""

    label: str
    x: float
    y: float
    low: float
    high: float
    """Ends of its interval in y."""


@dataclass(frozen=True)
class Span:
    """A stretch of a timeline, in milliseconds."""

    track: str
    name: str
    start: float
    length: float


class Picture:
    """A white sheet with a few drawing verbs."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), PAPER)
        self._draw = ImageDraw.Draw(self.image)
        self._font = ImageFont.load_default(FONT_PX)

    def width_of(self, words: str) -> float:
        return float(self._draw.textlength(words, font=self._font))

    def text(self, x: float, y: float, words: str, *, colour: str = INK, anchor: str = "la") -> None:
        self._draw.text((x, y), words, fill=colour, font=self._font, anchor=anchor)

    def line(self, points: Sequence[tuple[float, float]], colour: str = INK, width: int = 1) -> None:
        self._draw.line(list(points), fill=colour, width=width)

    def box(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        self._draw.rectangle((left, top, max(left, right), max(top, bottom)), fill=colour)

    def dot(self, x: float, y: float, colour: str, *, filled: bool = True) -> None:
        self._draw.ellipse(
            (x - 5, y - 5, x + 5, y + 5), fill=colour if filled else PAPER, outline=colour, width=2
        )

    def save(self, path: Path) -> None:
        """Write it as PNG. Raises OutputError."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.image.save(path, format="PNG")
        except OSError as error:
            raise OutputError(f"{path}: picture not written: {error.strerror or error}") from error


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, at most `most` steps of 1, 2 or 5 times a power of ten."""
    span = max(high - low, 1e-12)
    power = 10 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Axes:
    """A rectangle of a picture and the values its sides stand for."""

    left: int
    top: int
    right: int
    bottom: int
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def draw(self, picture: Picture, x_label: str, y_label: str = "", *, y_ticks: bool = True) -> None:
        for value in ticks(*self.x_range):
            picture.line([(self.x(value), self.top), (self.x(value), self.bottom)], FAINT)
            picture.text(self.x(value), self.bottom + 6, f"{value:g}", anchor="ma")
        for value in ticks(*self.y_range) if y_ticks else ():
            picture.line([(self.left, self.y(value)), (self.right, self.y(value))], FAINT)
            picture.text(self.left - 8, self.y(value), f"{value:g}", anchor="rm")
        picture.line([(self.left, self.top), (self.left, self.bottom), (self.right, self.bottom)])
        picture.text((self.left + self.right) / 2, self.bottom + 28, x_label, anchor="ma")
        picture.text(self.left, self.top - LINE_PX, y_label)


def front(points: Sequence[Point], *, less_is_better: bool) -> list[Point]:
    """The points no other is as good as in both directions (x: less is better), by x."""
    sign = 1 if less_is_better else -1
    kept: list[Point] = []
    for point in sorted(points, key=lambda one: (one.x, sign * one.y)):
        if not kept or sign * point.y < sign * kept[-1].y:
            kept.append(point)
    return kept


def trade_off(
    picture: Picture, top: int, points: Sequence[Point], labels: tuple[str, str], *, less_is_better: bool
) -> None:
    """One panel, 300 px high: points and intervals; those on the Pareto front are filled and joined."""
    most = max(max(point.high for point in points) * 1.1, 1e-3)
    widest = max(point.x for point in points) * 1.15
    axes = Axes(90, top + 40, picture.image.width - 40, top + 250, (0, widest), (0, most))
    axes.draw(picture, *labels)
    best = front(points, less_is_better=less_is_better)
    picture.line([(axes.x(point.x), axes.y(point.y)) for point in best], COLOURS[0], 2)
    for point in points:
        x, y = axes.x(point.x), axes.y(point.y)
        picture.line([(x, axes.y(point.low)), (x, axes.y(point.high))], COLOURS[5])
        picture.dot(x, y, COLOURS[0], filled=point in best)
        picture.text(x + 10, y - 10, point.label, anchor="ld")


def legend(picture: Picture, x: float, y: float, names: Sequence[str], known: Sequence[str]) -> None:
    """Names with their colours: each has its place in `known`, in every panel of a picture."""
    for name in names:
        picture.box(x, y + 3, x + 12, y + 15, colour_of(name, known))
        picture.text(x + 18, y, name)
        x += picture.width_of(name) + 40


def colour_of(name: str, known: Sequence[str]) -> str:
    return COLOURS[known.index(name) % len(COLOURS)]


def bars(
    picture: Picture, top: int, rows: Sequence[tuple[str, dict[str, float]]], unit: str, known: Sequence[str]
) -> int:
    """Stacked horizontal bars, one a row, with a legend; returns where they end."""
    left = 24 + math.ceil(max(picture.width_of(name) for name, _ in rows))
    most = max(sum(parts.values()) for _, parts in rows) or 1.0
    legend(picture, left, top, list(dict.fromkeys(part for _, parts in rows for part in parts)), known)
    first = top + 2 * LINE_PX
    bottom = first + len(rows) * 28
    axes = Axes(left, first, picture.image.width - 90, bottom, (0, most), (0, 1))
    axes.draw(picture, unit, y_ticks=False)
    for number, (name, parts) in enumerate(rows):
        y, at = first + number * 28 + 5, 0.0
        picture.text(left - 8, y + 9, name, anchor="rm")
        for part, value in parts.items():
            picture.box(axes.x(at), y, axes.x(at + value) - 1, y + 18, colour_of(part, known))
            at += value
        picture.text(axes.x(at) + 6, y + 9, f"{at:,.0f}" if at >= 100 else f"{at:.3g}", anchor="lm")
    return bottom + 60


def timeline(picture: Picture, top: int, spans: Sequence[Span]) -> None:
    """One row a track; spans are coloured by name, and named where there is room."""
    tracks = list(dict.fromkeys(span.track for span in spans))
    names = list(dict.fromkeys(span.name for span in spans))
    left = 24 + math.ceil(max(picture.width_of(track) for track in tracks))
    legend(picture, left, top, names, names)
    top += 2 * LINE_PX
    bottom = top + len(tracks) * 36
    end = max(span.start + span.length for span in spans)
    axes = Axes(left, top, picture.image.width - 40, bottom, (0, end), (0, 1))
    axes.draw(picture, "ms", y_ticks=False)
    for span in spans:
        y = top + tracks.index(span.track) * 36 + 6
        start, stop = axes.x(span.start), axes.x(span.start + span.length)
        picture.box(start, y, stop - 1, y + 24, colour_of(span.name, names))
        if picture.width_of(span.name) < stop - start - 6:
            picture.text(start + 4, y + 12, span.name, colour=PAPER, anchor="lm")
    for track in tracks:
        picture.text(left - 8, top + tracks.index(track) * 36 + 18, track, anchor="rm")
