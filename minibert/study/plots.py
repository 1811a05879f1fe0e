"""What the reports' plots have in common. They need matplotlib, the extra `plot`, which is imported only here."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of a size in inches, which a notebook shows without a magic line.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # not pyplot: it has global state
    except ImportError as error:
        raise ImportError("a plot needs matplotlib: pip install matplotlib (the extra plot)") from error

    class ShownFigure(Figure):
        def _repr_png_(self) -> bytes:
            png = io.BytesIO()
            self.savefig(png, format="png", dpi=DPI)
            return png.getvalue()

    return ShownFigure(figsize=(width, height), layout="constrained")


def heatmap(
    values: Tensor, rows: Sequence[str], columns: Sequence[str], title: str, bar: str, limits: tuple[float, float]
) -> "Figure":
    """Draw an (n, m) table of numbers in colours.

    Args:
        values: (n, m).
        rows: n names.
        columns: m names.
        title: above the figure.
        bar: what the colours mean.
        limits: the values of the lightest and the darkest colour; where the first is negative, 0 is white.
    """
    figure = new_figure(max(4.5, 2.2 + 0.6 * len(columns)), 1.6 + 0.35 * len(rows))
    axes = figure.subplots()
    colours = "RdBu_r" if limits[0] < 0 else "Blues"
    image = axes.imshow(values.cpu().double().numpy(), cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
    for (row, column), value in np.ndenumerate(values.cpu().double().numpy()):
        is_dark = abs(value) > 0.6 * limits[1]
        axes.text(
            column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if is_dark else "black"
        )
    text: dict[str, Any] = {"parse_math": False}  # "$" is a token, not a formula
    axes.set_xticks(range(len(columns)), columns, rotation=90 if max(map(len, columns)) > 6 else 0, **text)
    axes.set_yticks(range(len(rows)), rows, **text)
    axes.set_title(title, fontsize="medium", parse_math=False)
    figure.colorbar(image, label=bar)
    return figure


def curves(
    x: Sequence[Any], lines: Mapping[str, Tensor], title: str, x_label: str, y_label: str, logarithmic: bool = False
) -> "Figure":
    """Draw lines over the same x; on logarithmic axes a 0 has no place and is left out.

    Args:
        x: k numbers or names.
        lines: from the name of each line to its (k,) values.
        title: above the figure.
        x_label: below it.
        y_label: to the left of it.
        logarithmic: both axes are; x must then be numbers.
    """
    figure = new_figure(6, 3.6)
    axes = figure.subplots()
    for name, values in lines.items():
        shown = torch.where(values == 0, torch.nan, values.double()) if logarithmic else values.double()
        axes.plot(x, shown.cpu().numpy(), marker="o", label=name)
    if logarithmic:
        axes.set(xscale="log", yscale="log")
    axes.set_title(title, fontsize="medium")
    axes.set(xlabel=x_label, ylabel=y_label)
    legend = axes.legend(fontsize="small")
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure
