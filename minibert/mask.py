"""From an attention mask of zeros and ones to the numbers that are added to the attention scores.

Shapes: B batch, S tokens, H heads. A mask hides KEYS, the columns of the (query, key) scores. The rows of padded
queries still hold attention that sums to 1; nobody reads them.
"""

import torch
from torch import Tensor


def additive_mask(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn 1 = real token, 0 = padding into 0 = attend, `finfo(dtype).min` = ignore.

    Why add and not multiply: if the mask is added before the softmax, each row sums to 1 over the real keys; if it is
    multiplied after the softmax, it does not. Why the minimum of the dtype: the sum of it and any score is that minimum
    again (in float16 a score of -16 or less gives -inf, which is harmless beside one real key), and exp() of it is
    exactly 0. Why not -inf: a row without any real key would be NaN.

    Nothing is checked here: the model calls `check_attention_mask` first.

    Args:
        attention_mask: (B, S), 1 = a key to attend to; or (1 or B, 1 or H, S, S) bool, True = this query may attend to
            this key, such as a causal mask of shape (1, 1, S, S). See `check_attention_mask`.
        dtype: that of the hidden states.

    Returns:
        (B, 1, 1, S), broadcast over the heads and queries of the (B, H, S, S) scores; or (1 or B, 1 or H, S, S).

    Source: Vaswani et al. 2017, section 3.2.3 ("setting to -inf all values in the input of the softmax").
    """
    ignore = attention_mask == 0
    if ignore.ndim == 2:
        ignore = ignore[:, None, None, :]  # (B, 1, 1, S)
    return torch.zeros_like(ignore, dtype=dtype).masked_fill(ignore, torch.finfo(dtype).min)


def check_attention_mask(attention_mask: Tensor, batch: int, length: int, heads: int) -> None:
    """Refuse a mask that would give wrong results: another shape, other numbers, or a row without a key to attend to.

    Values are checked only outside compilation: the check costs a synchronization on a GPU.

    Args:
        attention_mask: (batch, length) of bools or of numbers that are exactly 0 or 1; or bools of shape
            (1 or batch, 1 or heads, length, length), where 1 stands for all texts or all heads.
        batch: B of the input.
        length: S of the input.
        heads: H of the model.

    Raises:
        ValueError: anything else, or a row that may attend to nothing.
    """
    if not isinstance(attention_mask, Tensor):
        raise ValueError(f"attention_mask must be a tensor, got {type(attention_mask).__name__}")
    shape = attention_mask.shape
    is_pattern = len(shape) == 4 and shape[0] in (1, batch) and shape[1] in (1, heads) and shape[2:] == (length, length)
    if shape != (batch, length) and not is_pattern:
        raise ValueError(
            f"attention_mask has shape {tuple(shape)}, but the input needs ({batch}, {length}), "
            f"1 = real token, or bools of shape (1 or {batch}, 1 or {heads}, {length}, {length})"
        )
    if attention_mask.ndim == 4 and attention_mask.dtype != torch.bool:
        raise ValueError(
            f"a 4-D attention_mask must be bool, True = may attend, got {attention_mask.dtype}: "
            f"an additive mask of 0 and -10000 would be read as its opposite"
        )
    if not has_values(attention_mask):
        return
    wrong = (attention_mask != 0) & (attention_mask != 1)
    if wrong.any():
        raise ValueError(
            f"attention_mask must hold only 0 (padding) and 1 (real token), got {attention_mask[wrong][0].item()}"
        )
    empty = ~attention_mask.bool().any(dim=-1)
    if empty.any():
        raise ValueError(f"attention_mask row {empty.nonzero()[0].tolist()} is all 0: it may attend to nothing")


def has_values(tensor: Tensor) -> bool:
    """Whether a check can read values: not during compilation, under vmap, or on the meta device."""
    if torch.compiler.is_compiling() or tensor.is_meta:
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
