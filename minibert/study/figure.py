"""The attention of one head as a matplotlib figure, for a paper: PNG, SVG, PDF."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..pretrained import PreTrainedModel
from ..tokenizer import DistilBertTokenizer
from .models import choose
from .page import encode
from .plots import new_figure
from .steps import capture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@torch.no_grad()
def attention_figure(
    model: PreTrainedModel,
    tokenizer: DistilBertTokenizer,
    texts: str | Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    layer: int = 0,
    head: int = 0,
    row: int = 0,
    masks: Sequence[bool] = (False, True),
    length: int | None = None,
) -> "Figure":
    """Draw the attention of one head, queries down, keys across; padded keys are hatched, padded queries are dimmed.

    Args:
        model: any model except multiple choice, in eval mode.
        tokenizer: the model's tokenizer.
        texts: one text for each row of the batch.
        pairs: the second text of each row.
        layer: the layer to draw.
        head: the head of that layer.
        row: the row of the batch.
        masks: one panel for each: False for a run without the mask, True for a run with it.
        length: pad or truncate the rows to this number of tokens; None: pad to the longest row.

    Returns:
        A figure: `figure.savefig("attention.pdf")`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: a model in training mode or with choices; a layer or head that the model does not have, a row that
            the batch does not have; no panel.
    """
    try:
        from matplotlib.colors import PowerNorm
    except ImportError as error:
        raise ImportError("attention_figure needs matplotlib: pip install matplotlib (the extra plot)") from error
    inputs = encode(model, tokenizer, texts, pairs, length)
    input_ids, real = inputs["input_ids"], inputs["attention_mask"]
    sizes = {"layer": (layer, model.config.n_layers), "head": (head, model.config.n_heads), "row": (row, len(real))}
    for name, (index, size) in sizes.items():
        choose(name, [index], size)
    if not masks:
        raise ValueError("masks is empty: give one value for each panel, such as masks=[False, True]")
    probs = f"{model.encoder_prefix}transformer.layer.{layer}.attention.probs"
    tokens = tokenizer.convert_ids_to_tokens(input_ids[row].tolist())
    ticks = range(len(tokens))
    side = 1.4 + 0.22 * len(tokens)  # inches
    figure = new_figure(side * len(masks) + 0.6, side)
    panels = figure.subplots(1, len(masks), squeeze=False)[0]
    for panel, mask in zip(panels, masks, strict=True):
        with capture(model, probs) as steps:
            model(input_ids, real if mask else None)
        values = steps[probs][row, head].float().cpu().numpy()
        image = panel.imshow(values, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))  # √p: small weights show
        panel.set_title(f"layer {layer}, head {head}, {'with' if mask else 'without'} mask", fontsize="medium")
        panel.set_xticks(ticks, tokens, rotation=90, parse_math=False)  # "$" is a token, not a formula
        panel.set_yticks(ticks, tokens, parse_math=False)
        panel.set(xlabel="key", ylabel="query")
        for padded in (real[row] == 0).nonzero()[:, 0].tolist():
            panel.axhspan(padded - 0.5, padded + 0.5, color="white", alpha=0.65, linewidth=0)
            panel.axvspan(padded - 0.5, padded + 0.5, fill=False, hatch="///", edgecolor="0.6", linewidth=0, zorder=3)
    figure.colorbar(image, ax=panels, label="probability", shrink=0.7)
    return figure
