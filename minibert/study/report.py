"""What all reports share: they hold plain tensors, print as tables, show themselves in a notebook, turn into JSON."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import torch
from torch import Tensor

from ..terminal import visible


class Report:
    """Base of the dataclasses that the instruments return."""

    def parts(self) -> Iterable[str]:
        """Return what is printed, from top to bottom: tables, and lines of text."""
        raise NotImplementedError

    def __str__(self) -> str:
        return "\n".join(self.parts())

    def _repr_html_(self) -> str:
        """Return the parts for a notebook: tables as tables, the lines between them as text."""
        return "".join(
            part.html() if isinstance(part, Table) else f'<pre style="margin: 0">{escape(part) or "<br>"}</pre>'
            for part in self.parts()
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, tensors as nested lists, for JSON."""
        return {name: plain(value) for name, value in vars(self).items()}


def plain(value: Any) -> Any:
    """Turn tensors into nested lists, also inside dicts, lists and reports; NaN and infinity become None, for JSON."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Report):
        return value.to_dict()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


class Table(str):
    """Rows under a header, as text with aligned columns: text to the left, numbers to the right; see `table`."""

    cells: list[list[str]]  # the header first
    numeric: list[bool]  # by column

    def html(self) -> str:
        """Return the same table in HTML."""
        align = ["right" if right else "left" for right in self.numeric]
        rows = (
            "".join(
                f'<{tag} style="text-align: {side}; padding: 0 0.5em">{escape(cell)}</{tag}>'
                for cell, side in zip(row, align, strict=True)
            )
            for tag, row in zip(["th", *["td"] * len(self.cells)], self.cells, strict=False)
        )
        return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"

    _repr_html_ = html


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Lay out rows under a header.

    Args:
        header: a title for each column.
        rows: cells; a float is printed with four significant digits, control characters are escaped.
    """
    body = [list(row) for row in rows]
    numeric = [all(_is_number(row[i]) for row in body) for i in range(len(header))]
    cells = [[f"{x:.4g}" if isinstance(x, float) else visible(str(x)) for x in row] for row in [header, *body]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    laid_out = Table(
        "\n".join(
            "  ".join(
                f"{cell:>{width}}" if right else f"{cell:<{width}}"
                for cell, width, right in zip(line, widths, numeric, strict=True)
            ).rstrip()
            for line in cells
        )
    )
    laid_out.cells, laid_out.numeric = cells, numeric
    return laid_out


def layers_by_heads(values: Tensor, last: str, summary: Tensor) -> Table:
    """Lay out (N, H) values and a last column of (N,), with two digits, so that twelve heads fit on a line."""
    header = ["layer", *(f"head {i}" for i in range(values.shape[1])), last]
    columns = torch.cat([values, summary[:, None]], dim=1).tolist()
    return table(header, [[layer, *(f"{x:.2g}" for x in row)] for layer, row in enumerate(columns)])


def _is_number(cell: object) -> bool:
    """Whether a cell is a number, also one already formatted, such as "+ 0.5" or "12.0%"."""
    return isinstance(cell, int | float) or str(cell).lstrip("+-= ")[:1].isdigit()


def dtype_name(dtype: torch.dtype) -> str:
    """torch.float32 -> "float32"."""
    return str(dtype).removeprefix("torch.")
