"""The values of a batch by name, such as `input_ids`: from rows to lists, padding, from lists to tensors."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .rows import fill

PADDING = {  # value for [PAD]; for input_ids it is the tokenizer's pad_token_id
    "attention_mask": 0,
    "token_type_ids": 0,
    "special_tokens_mask": 1,
    "offset_mapping": (0, 0),
}
PER_TOKEN = ("input_ids", *PADDING)


def as_columns(encoded_inputs: Any) -> tuple[dict[str, list[Any]], bool, str | None]:
    """Collect the values of several rows in one list for each name.

    Args:
        encoded_inputs: a list of mappings, one for each row; or a mapping with the values of all rows, or of one row.

    Returns:
        The lists, without tensors; True for one row; and "pt" or "np" if `input_ids` were tensors, else None.

    Raises:
        TypeError: `encoded_inputs` is something else.
        ValueError: `input_ids` are missing, or a row has other names than row 0, or too few values.
    """
    if isinstance(encoded_inputs, Mapping):
        columns = dict(encoded_inputs)
    elif isinstance(encoded_inputs, (list, tuple)) and all(isinstance(row, Mapping) for row in encoded_inputs):
        names = list(encoded_inputs[0]) if encoded_inputs else ["input_ids"]
        for i, row in enumerate(encoded_inputs):
            if row.keys() != set(names):
                raise ValueError(f"row {i} has {list(row)}, but row 0 has {names}")
        columns = {name: [row[name] for row in encoded_inputs] for name in names}
    else:
        raise TypeError(f"expected a mapping or a list of mappings, not {encoded_inputs!r:.60}")
    if "input_ids" not in columns:
        raise ValueError(f"there are no input_ids to pad, only {list(columns)}")
    first = columns["input_ids"][0] if len(columns["input_ids"]) else None
    kind = "pt" if isinstance(first, torch.Tensor) else "np" if isinstance(first, (np.ndarray, np.generic)) else None
    is_row = isinstance(_plain(first), int)
    if is_row:
        columns = {name: [values] for name, values in columns.items()}
    columns = {name: [_plain(value) for value in values] for name, values in columns.items()}
    for name, values in columns.items():
        if len(values) != len(columns["input_ids"]):
            raise ValueError(f"{name} has {len(values)} rows, but input_ids have {len(columns['input_ids'])}")
    return columns, is_row, kind


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (torch.Tensor, np.ndarray, np.generic)) else value


def pad_columns(columns: Mapping[str, list[Any]], pad_id: int, length: int, side: str) -> dict[str, list[Any]]:
    """Pad the values in `PER_TOKEN`; others stay as they are.

    Raises:
        ValueError: a row has more or fewer values than ids, or its ids are lists.
    """
    for i, ids in enumerate(columns["input_ids"]):
        for name in PER_TOKEN & columns.keys():
            if not isinstance(columns[name][i], (list, tuple)) or len(columns[name][i]) != len(ids):
                raise ValueError(f"{name} of row {i} must be a list of {len(ids)}, one for each id")
        if any(isinstance(id_, (list, tuple)) for id_ in ids):
            raise ValueError(f"input_ids of row {i} are lists: pass each choice as a separate row")
    values = {"input_ids": pad_id, **PADDING}
    return {
        name: [fill(list(row), values[name], length, side) for row in rows] if name in values else rows
        for name, rows in columns.items()
    }


def as_tensors(columns: Mapping[str, list[Any]], kind: str, max_length: int | None) -> dict[str, Any]:
    """Make a tensor of each column: int64 for integers, float32 for other numbers.

    Args:
        columns: by name.
        kind: "pt" for PyTorch, "np" for NumPy.
        max_length: the most tokens that the model takes.

    Raises:
        ValueError: a column that cannot be a tensor, or a row that is longer than the model takes.
    """
    lengths = sorted(set(map(len, columns["input_ids"])))
    if not lengths:
        raise ValueError("an empty batch cannot be a tensor")
    if len(lengths) > 1:
        raise ValueError(f"rows of {lengths} tokens cannot be one tensor: pass padding=True")
    if max_length is not None and lengths[0] > max_length:
        raise ValueError(
            f"a row has {lengths[0]} tokens, but the model takes {max_length}: pass truncation=True, "
            f"with return_overflowing_tokens=True to keep all of the text"
        )
    tensors: dict[str, Any] = {}
    for name, rows in columns.items():
        try:
            array = np.array(rows, dtype=np.int64 if name in PER_TOKEN else None)
        except (TypeError, ValueError, OverflowError):
            array = np.array(None)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name} cannot be a tensor: pad it to one length, or remove what is not a number")
        if array.dtype.kind == "f":
            array = array.astype(np.float32)
        tensors[name] = torch.from_numpy(array) if kind == "pt" else array
    return tensors
