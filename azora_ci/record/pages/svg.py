"""Small charts as SVG, made here: no library, no script. Pure.

Horizontal places are percentages of the width, vertical ones pixels: text keeps its size, and a chart fits a phone as well as a screen.
A chart is for the eye; the table beside it has the same numbers. Colours come from the classes of ``style.css``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

Points = Sequence[tuple[float, float]]  # (share of the width, value)


def element(name: str, *content: object, **attributes: object) -> Markup:
    """Return an element. A trailing underscore of an attribute is dropped (``class_``), other underscores become hyphens."""
    listed = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items() if value is not None)
    return Markup(f"<{name}{listed}>{''.join(map(escape, content))}</{name}>")  # noqa: S704 - names are ours, values are escaped


def percent(share: float) -> str:
    """Return a share of the width."""
    return f"{min(max(share, -1), 2) * 100:.4g}%"


def chart(label: str | None, height: int, *content: object) -> Markup:
    """Return a chart as wide as its place; ``label``: what a screen reader says; None where the text beside it says all."""
    named = {"role": "img", "aria_label": label} if label else {"aria_hidden": "true"}
    return element("svg", *content, width="100%", height=height, **named)


def rule(y: float, text: str = "", *, at: float = 0) -> Markup:
    """Return a horizontal line of an axis with its value above it."""
    line = element("line", x1="0", x2="100%", y1=f"{y:.1f}", y2=f"{y:.1f}", class_="axis")
    return line + (element("text", text, x=percent(at), y=f"{y - 4:.1f}") if text else Markup(""))


def bar(start: float, end: float, class_: str, *, y: float = 0, height: float = 10, least: float = 3) -> Markup:
    """Return a bar between two shares of the width; at least ``least`` pixels are seen of it."""
    place = {"y": f"{y:.1f}", "height": f"{height:.1f}", "rx": "2", "class_": class_}
    grown = element("rect", x=percent(start), width=f"{least:g}", **place)
    return grown + element("rect", x=percent(start), width=percent(max(0.0, end - start)), **place)


def upright(at: float, top: float, bottom: float, class_: str) -> Markup:
    """Return a vertical line."""
    return element("line", x1=percent(at), x2=percent(at), y1=f"{top:.1f}", y2=f"{bottom:.1f}", class_=class_)


def dot(at: float, y: float, class_: str, radius: float = 4.5) -> Markup:
    """Return a dot."""
    return element("circle", cx=percent(at), cy=f"{y:.1f}", r=f"{radius:g}", class_=class_)


def words(at: float, y: float, text: str, *, anchor: str = "start", class_: str | None = None) -> Markup:
    """Return a text that starts, ends or is centred (``middle``) at a share of the width."""
    return element("text", text, x=percent(at), y=f"{y:.1f}", text_anchor=anchor, class_=class_)


def lines(height: float, top: float, *drawn: tuple[str, Iterable[str]]) -> Markup:
    """Return paths in a layer that is stretched to the width: (class, path data in thousandths of the width and pixels)."""
    paths = [element("path", d=data, class_=class_) for class_, parts in drawn if (data := " ".join(parts))]
    view = f"0 0 1000 {height:g}"
    return element("svg", *paths, y=f"{top:g}", width="100%", height=f"{height:g}", viewBox=view, preserveAspectRatio="none")


def path(points: Points, highest: float, height: float, *, stepped: bool = False, closed: bool = False) -> str:
    """Return the path through points; ``highest``: the value at the top; ``closed``: down to the base line, as an area."""
    if not points:
        return ""
    placed = [(1000 * x, height - height * min(max(value / highest if highest else 0.0, 0.0), 1.0)) for x, value in points]
    data = f"M{placed[0][0]:.1f} {placed[0][1]:.1f}"
    for x, y in placed[1:]:
        data += f"H{x:.1f}V{y:.1f}" if stepped else f"L{x:.1f} {y:.1f}"
    if closed:
        data += f"L{placed[-1][0]:.1f} {height:g}L{placed[0][0]:.1f} {height:g}Z"
    return data


def nice(highest: float) -> float:
    """Return the next round number for the top of an axis."""
    if highest <= 0:
        return 1.0
    scale = 1e-9
    while scale * 10 < highest:
        scale *= 10
    return next(factor * scale for factor in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if factor * scale >= highest * 0.999999)
