"""A small scatter plot as SVG: the same points give the same bytes. A pure function."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 16, 52
FILLS = {"chosen": "#1f6feb", "kept": "#2da44e", "beaten": "#8c959f", "missed": "#d1242f"}
MEANING = {"chosen": "ships", "kept": "keeps the limits", "beaten": "keeps them, beaten", "missed": "misses a limit"}


@dataclass(frozen=True)
class Point:
    """x > 0. x_low <= x <= x_high and the same for y: intervals. kind: a key of FILLS. label: short."""

    label: str
    kind: str
    x: float
    x_low: float
    x_high: float
    y: float
    y_low: float
    y_high: float


@dataclass(frozen=True)
class Axes:
    """Titles and limits, which are dashed lines. x is logarithmic."""

    x_title: str
    y_title: str
    x_limit: float | None = None
    y_limit: float | None = None
    percent: bool = True


def scatter_svg(points: Sequence[Point], axes: Axes, *, inside_html: bool = False) -> str:
    """The whole ``<svg>``; as a file of its own it also has a namespace and a white ground. Raises ValueError without
    points.
    """
    if not points:
        raise ValueError("a plot needs points")
    xs, ys = _ranges(points, axes)
    place = _Place(xs, ys)
    own = "" if inside_html else ' xmlns="http://www.w3.org/2000/svg"'
    ground = "" if inside_html else f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    head = f'<svg{own} viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="sans-serif" font-size="12"'
    style = ' style="width:100%;max-width:45rem"' if inside_html else f' width="{WIDTH}" height="{HEIGHT}"'
    title = f"<title>{escape(axes.y_title)} over {escape(axes.x_title)}</title>"
    parts = [f'{head}{style} fill="currentColor">', title, ground, *_grid(place, axes), *_limits(place, axes)]
    parts += [_mark(place, one) for one in points]
    return "\n".join([part for part in (*parts, *_legend(points)) if part] + ["</svg>\n"])


@dataclass(frozen=True)
class _Place:
    """Values to pixels."""

    xs: tuple[float, float]
    ys: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = map(math.log, self.xs)
        share = (math.log(max(value, self.xs[0])) - low) / (high - low)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        share = (value - self.ys[0]) / (self.ys[1] - self.ys[0])
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)


def _ranges(points: Sequence[Point], axes: Axes) -> tuple[tuple[float, float], tuple[float, float]]:
    """Every interval and limit, with a margin."""
    xs = [value for one in points for value in (one.x_low, one.x_high)] + [axes.x_limit or points[0].x]
    ys = [value for one in points for value in (one.y_low, one.y_high)]
    ys += [points[0].y if axes.y_limit is None else axes.y_limit]
    margin = 0.06 * (max(ys) - min(ys)) or 0.01 * max(abs(max(ys)), 1.0)
    top = min(1.0, max(ys) + margin) if axes.percent else max(ys) + margin
    low = max(0.0, min(ys) - margin)
    return (max(min(xs), 1e-6) / 1.25, max(max(xs), 1e-6) * 1.25), (low, max(top, low + 1e-6))


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within [low, high]."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [tick for power in powers for step in (1, 2, 5) if low <= (tick := float(f"{step}e{power}")) <= high]


def even_ticks(low: float, high: float) -> list[float]:
    """About five round steps within [low, high]."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [round(k * step, 10) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _grid(place: _Place, axes: Axes) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="currentColor"/>']
    for tick in log_ticks(*place.xs):
        x = place.x(tick)
        parts.append(f'<path d="M{x} {TOP}V{bottom}" stroke="currentColor" stroke-opacity=".12"/>')
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    for tick in even_ticks(*place.ys):
        y, text = place.y(tick), f"{100 * tick:g}" if axes.percent else f"{tick:g}"
        parts.append(f'<path d="M{LEFT} {y}H{right}" stroke="currentColor" stroke-opacity=".12"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{text}</text>')
    middle = (TOP + bottom) / 2
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{bottom + 34}" text-anchor="middle">{escape(axes.x_title)}</text>')
    turned = f'transform="rotate(-90 16 {middle})"'
    return [*parts, f'<text x="16" y="{middle}" text-anchor="middle" {turned}>{escape(axes.y_title)}</text>']


def _limits(place: _Place, axes: Axes) -> list[str]:
    style = f'stroke="{FILLS["missed"]}" stroke-dasharray="5 4" fill="none"'
    parts = []
    if axes.x_limit is not None:
        parts.append(f'<path d="M{place.x(axes.x_limit)} {TOP}V{HEIGHT - BOTTOM}" {style}/>')
    if axes.y_limit is not None:
        parts.append(f'<path d="M{LEFT} {place.y(axes.y_limit)}H{WIDTH - RIGHT}" {style}/>')
    return parts


def _mark(place: _Place, one: Point) -> str:
    x, y, colour = place.x(one.x), place.y(one.y), FILLS[one.kind]
    bars = f"M{place.x(one.x_low)} {y}H{place.x(one.x_high)}M{x} {place.y(one.y_low)}V{place.y(one.y_high)}"
    return (
        f'<path d="{bars}" stroke="{colour}" stroke-opacity=".55" fill="none"/>'
        f'<circle cx="{x}" cy="{y}" r="{7 if one.kind == "chosen" else 4}" fill="{colour}"/>'
        f'<text x="{x + 8}" y="{y - 6}">{escape(one.label)}</text>'
    )


def _legend(points: Sequence[Point]) -> list[str]:
    kinds = [kind for kind in FILLS if any(one.kind == kind for one in points)]
    parts = []
    for number, kind in enumerate(kinds):
        x, y = LEFT + 12 + 150 * number, HEIGHT - 5
        parts.append(f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{FILLS[kind]}"/>')
        parts.append(f'<text x="{x + 9}" y="{y}">{MEANING[kind]}</text>')
    return parts
