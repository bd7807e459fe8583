"""The house style of all pictures, without touching matplotlib's global state."""

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which colour-blind readers can tell apart, without their yellow: it is too faint for a line."""
BLUE, ORANGE, GREEN, *_ = COLORS
GREY = "#707070"


def new_figure(height: float, title: str, *, title_size: float, dpi: int, pad: float) -> Any:
    """A figure of 12 x `height` inches that keeps its panels apart."""
    figure = Figure(figsize=(12, height), dpi=dpi, layout=ConstrainedLayoutEngine(h_pad=pad, w_pad=pad))
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=title_size, fontweight="bold", x=0.01, ha="left", parse_math=False)
    return figure


def style_panel(axes: Any, title: str, *, title_size: float = 11.5, label_size: float = 10, ticks: int = 5) -> None:
    """Title, grid and whole numbers of steps."""
    axes.set_title(title, fontsize=title_size, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(which="both", color="#000000", alpha=0.08)
    axes.tick_params(labelsize=label_size)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, integer=True, steps=[1, 2, 5, 10]))


def has_data(axes: Any, points: int = 0) -> bool:
    """Whether a line of more than `points` points has a finite value."""
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) > points]
    return any(np.isfinite(np.asarray(line.get_ydata(), dtype=float)).any() for line in lines)
