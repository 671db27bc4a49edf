"""The figures and tables of the book in one style, and source code shown as code.

Colours are petroff6, which stay apart for colour-blind readers; curves differ in dash as well.
Figures are SVG on a white ground of their own, so that they read in light and dark pages alike.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from IPython.display import HTML, Code, display
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib_inline.backend_inline import set_matplotlib_formats
from numpy.typing import ArrayLike

from bnkit.arguments import Array

# matplotlib has them as the sequence "petroff6" from 3.11 on.
COLORS = [
    mpl.colors.to_rgb(color)
    for color in ("#5790fc", "#f89c20", "#e42536", "#964a8b", "#9c9ca1", "#7a21dd")
]
DASHES: list[Any] = [
    "-",
    (0, (5, 2)),
    (0, (1, 1.2)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (8, 2)),
    (0, (3, 1)),
]
GREY = "#6b6b6b"


def use_style() -> None:
    """Set matplotlib to the book's style: SVG, petroff6, light grid, no top and right frame.

    >>> use_style()
    >>> mpl.rcParams["axes.spines.top"]
    False
    """
    set_matplotlib_formats("svg")
    cycle = cycler(color=COLORS, linestyle=DASHES)
    mpl.rcParams.update(
        {
            "axes.edgecolor": GREY,
            "axes.grid": True,
            "axes.labelsize": 11.5,
            "axes.prop_cycle": cycle,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 11.5,
            "axes.titleweight": "bold",
            "figure.constrained_layout.use": True,
            "figure.figsize": (7.2, 3.6),
            "font.size": 11,
            "grid.color": "#e4e4e4",
            "grid.linewidth": 0.8,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "savefig.facecolor": "white",
            "svg.hashsalt": "bnkit",
            "xtick.color": GREY,
            "ytick.color": GREY,
        }
    )


def band(ax: Axes, x: ArrayLike, runs: ArrayLike, label: str, index: int = 0) -> Line2D:
    """Draw the median of several runs as a line and their range as a band around it.

    Args:
        ax: where to draw.
        x: shape (points,).
        runs: shape (seeds, points).
        label: what the line is; shown by ``label_lines`` or a legend.
        index: which colour and dash of the style.

    Returns:
        The line of the median.

    >>> import matplotlib.pyplot as plt
    >>> figure, ax = plt.subplots()
    >>> band(ax, [0, 1], [[1, 2], [3, 4]], "two runs").get_ydata()
    array([2., 3.])
    >>> plt.close(figure)
    """
    runs = np.asarray(runs, dtype=float)
    color, dash = COLORS[index], DASHES[index]
    ax.fill_between(np.asarray(x), runs.min(0), runs.max(0), color=color, alpha=0.2, linewidth=0)
    (line,) = ax.plot(x, np.median(runs, 0), color=color, linestyle=dash, label=label)
    return line


def label_lines(ax: Axes, *, gap: float = 0.055) -> None:
    """Write each labelled line's name beside its last point, moved apart where they would touch.

    Call it last: a limit or a scale that is set afterwards would leave the names behind.

    Args:
        ax: axes whose lines carry labels (those starting with an underscore are left alone).
        gap: least distance of two labels, as a fraction of the axes' height.

    >>> import matplotlib.pyplot as plt
    >>> figure, ax = plt.subplots()
    >>> line = ax.plot([0, 1], [0, 1], label="rising")
    >>> label_lines(ax)
    >>> [text.get_text() for text in ax.texts]
    ['rising']
    >>> plt.close(figure)
    """
    lines = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
    to_axes = ax.transData + ax.transAxes.inverted()
    ends = [to_axes.transform(np.asarray(line.get_xydata())[-1]) for line in lines]
    height = -np.inf
    for (right, end), line in sorted(zip(ends, lines, strict=True), key=lambda pair: pair[0][1]):
        height = max(end, height + gap)
        ax.annotate(
            str(line.get_label()),
            xy=(right, height),
            xycoords="axes fraction",
            xytext=(6, 0),
            textcoords="offset points",
            color=line.get_color(),
            va="center",
            annotation_clip=False,
        )


def interval(values: ArrayLike) -> tuple[Array, Array]:
    r"""Mean of independent values, and half the width of its 95 % interval.

    .. math:: \bar v \pm 1.96 \sqrt{\frac{1}{n (n - 1)} \sum_k (v_k - \bar v)^2}

    The factor is that of the normal distribution, so there should be some twenty values or more.

    Args:
        values: shape (n, …), n independent values of each quantity.

    Returns:
        The mean and the half width, each of shape (…).

    >>> mean, half_width = interval([1.0, 2.0, 3.0, 4.0])
    >>> print(f"{mean:.1f} ± {half_width:.2f}")
    2.5 ± 1.27
    """
    values = np.asarray(values, dtype=float)
    half_width = 1.96 * values.std(0, ddof=1) / np.sqrt(len(values))
    return values.mean(0), np.asarray(half_width)


def show_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> None:
    """Display rows of numbers and words as a table.

    Args:
        header: names of the columns; "" for a column of names of rows.
        rows: one cell for each column.

    >>> show_table(["m", "v"], [[2, 0.5]])
    <IPython.core.display.HTML object>
    """
    head = "".join(
        f"<th scope='col'>{escape(str(name))}</th>" if name else "<td></td>" for name in header
    )
    cells = ("".join(map(_cell, row)) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    display(
        HTML(f"<table class='table'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    )


def _cell(content: object) -> str:
    """HTML of a cell; a number or a date is not broken at its hyphen, as in 1e-16."""
    text = escape(str(content))
    whole = text[:1].isdigit() and " " not in text
    return f"<td class='text-nowrap'>{text}</td>" if whole else f"<td>{text}</td>"


def show_explorable(name: str, data: dict[str, Any]) -> None:
    """Show data in a figure that answers to the reader's hand, in the book online.

    Args:
        name: which of the figures of ``book/assets/static/explorables``.
        data: what it wants, as JSON can hold it.

    >>> show_explorable("landscape", {"rates": [1], "scales": [1], "variants": []})
    <IPython.core.display.HTML object>
    """
    content = json.dumps(data).replace("<", "\\u003c")  # nothing in it may end the element
    display(HTML(f'<bn-{name}><script type="application/json">{content}</script></bn-{name}>'))


def show_source(*objects: Callable[..., Any] | type) -> None:
    """Display the source of functions or classes of bnkit, highlighted, without docstrings.

    Args:
        objects: what to show, in this order.

    >>> from bnkit import moving_average
    >>> show_source(moving_average)
    def moving_average(moving: ArrayLike, batch: ArrayLike, momentum: float) -> Array:
        momentum = check_momentum(momentum)
        moving, batch = check_real("moving", moving), check_real("batch", batch)
        return momentum * moving + (1 - momentum) * batch
    """
    sources = [_without_docstring(each).rstrip() for each in objects]
    display(Code("\n\n\n".join(sources), language="python"))


def _without_docstring(obj: Callable[..., Any] | type) -> str:
    source = inspect.getsource(obj)
    if not obj.__doc__:
        return source
    start = source.index('"""') - len("r") * (source[source.index('"""') - 1] == "r")
    end = source.index('"""', source.index('"""') + 3) + 3
    return source[:start].rstrip() + source[end:]
