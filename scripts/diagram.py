#!/usr/bin/env python3
"""Draw the model, every named value with its formula: python scripts/diagram.py writes .github/images/model.svg.

Places and arrows are written down here, formulas are those of `minibert trace`. A test compares the names with the
model's own.
"""

from html import escape
from pathlib import Path

from minibert import DistilBertConfig, heads
from minibert.model import DistilBertModel
from minibert.study.trace import formula

PICTURE = Path(__file__).parent.parent / ".github" / "images" / "model.svg"
WIDTH, HEIGHT = 950, 866
ROW, BOX = 46, 34  # height of a row, and of a box in it
STYLE = """
svg { font: 10.5px system-ui, sans-serif; --ink: #1f2328; --faint: #59636e; --paper: #fff; --fill: #eef3fa }
@media (prefers-color-scheme: dark) { svg { --ink: #e6edf3; --faint: #9198a1; --paper: #0d1117; --fill: #1b2635 } }
text { fill: var(--faint); text-anchor: middle } .left { text-anchor: start }
.name { fill: var(--ink); font: 600 12px ui-monospace, Menlo, Consolas, monospace }
.paper { fill: var(--paper) } .box { fill: var(--fill); stroke: var(--faint) }
.frame { fill: none; stroke: var(--faint); stroke-dasharray: 4 3 }
.arrow { fill: none; stroke: var(--ink); marker-end: url(#tip) } #tip path { fill: var(--ink) }
"""
LAYER = "transformer.layer.N."
Place = tuple[int, int, int]  # x, y and width of a box


def column(x: int, y: int, width: int, names: str) -> dict[str, Place]:
    """Place boxes below each other."""
    return {name: (x, y + i * ROW, width) for i, name in enumerate(names.split())}


def two_by_two(y: int, names: str) -> dict[str, Place]:
    """Place the boxes of a head, two in a row."""
    return {name: (20 + i % 2 * 162, y + i // 2 * ROW, 150) for i, name in enumerate(names.split())}


BOXES: dict[str, dict[str, Place]] = {  # by class, and by the step's name
    "DistilBertModel": column(20, 64, 150, "embeddings.word_embeddings")
    | column(182, 64, 150, "embeddings.position_embeddings")
    | column(66, 110, 220, "embeddings.sum embeddings.LayerNorm embeddings.dropout")
    | column(395, 72, 115, f"{LAYER}attention.v_lin {LAYER}attention.v")
    | column(525, 72, 105, f"{LAYER}attention.q_lin {LAYER}attention.q")
    | column(640, 72, 105, f"{LAYER}attention.k_lin {LAYER}attention.k")
    | column(525, 164, 220, f"{LAYER}attention.scores {LAYER}attention.masked_scores {LAYER}attention.probs")
    | column(525, 302, 220, f"{LAYER}attention.dropout {LAYER}attention.context {LAYER}attention.out_lin")
    | column(757, 210, 172, f"{LAYER}attention.mask")
    | column(525, 448, 220, f"{LAYER}sa_residual {LAYER}sa_layer_norm")
    | column(525, 558, 220, f"{LAYER}ffn.lin1 {LAYER}ffn.activation {LAYER}ffn.lin2 {LAYER}ffn.dropout")
    | column(525, 756, 220, f"{LAYER}output_residual {LAYER}output_layer_norm"),
    "DistilBertForSequenceClassification": two_by_two(344, "pre_classifier activation dropout classifier"),
    "DistilBertForMaskedLM": two_by_two(474, "vocab_transform activation")
    | column(66, 520, 220, "vocab_layer_norm vocab_projector"),
    "DistilBertForTokenClassification": two_by_two(650, "dropout classifier"),
    "DistilBertForQuestionAnswering": two_by_two(734, "dropout qa_outputs"),
}
FRAMES = [  # title, x, y, width, height
    ("embeddings", 10, 40, 330, 204),
    ("DistilBertForSequenceClassification, …MultipleChoice", 10, 318, 330, 114),
    ("DistilBertForMaskedLM", 10, 448, 330, 160),
    ("DistilBertForTokenClassification", 10, 624, 330, 68),
    ("DistilBertForQuestionAnswering", 10, 708, 330, 68),
    ("transformer.layer.N, N = 0, 1, …", 360, 10, 580, 846),
    ("attention", 385, 50, 550, 386),
    ("ffn", 515, 534, 240, 206),
]
ARROWS = [  # corners, x and y in turn
    *("97 32 97 64", "257 32 257 64", "97 98 97 110", "257 98 257 110"),
    *("176 144 176 156", "176 190 176 202"),
    "286 219 350 219 350 40 692 40 692 72",  # the hidden states: to k_lin, q_lin, v_lin, and around the attention
    *("577 40 577 72", "452 40 452 72", "372 40 372 465 525 465"),
    *("452 106 452 118", "577 106 577 118", "692 106 692 118"),
    *("577 152 577 164", "692 152 692 164", "452 152 452 365 525 365", "843 112 843 210", "757 227 745 227"),
    *(f"635 {y} 635 {y + 12}" for y in (198, 244, 290, 336, 382)),
    *("635 428 635 448", "635 482 635 494", "635 528 635 558", "525 511 490 511 490 773 525 773"),
    *(f"635 {y} 635 {y + 12}" for y in (592, 638, 684)),
    *("635 730 635 756", "635 790 635 802", "635 836 635 846 350 846 350 296 300 296"),
    *(f"170 {y} 182 {y}" for y in (361, 407, 491, 667, 751)),
    *("257 378 257 384 95 384 95 390", "257 508 257 520", "176 554 176 566"),
]
NOTES = [  # x, y, text
    (97, 26, "input_ids (B, S)"),
    (257, 26, "positions 0, 1, 2, …"),
    (843, 44, "hidden states (B, S, D)"),
    (843, 92, "attention_mask (B, S)"),
    (843, 106, "through additive_mask"),
    (785, 139, "(B, H, S, E)"),
    (785, 185, "(B, H, S, S)"),
    (785, 369, "(B, H, S, E)"),
    (785, 415, "(B, S, D)"),
    (150, 282, "After the last layer: last_hidden_state (B, S, D)."),
    (150, 300, "DistilBertModel returns it; a head reads it:"),
    (175, 808, "B batch, S tokens, D dim, H heads, E = D / H."),
    (175, 826, "Scores are (query, key). Dropout does nothing in eval mode."),
    (175, 844, "Each box is a name for capture(model, …) and edit(model, …)."),
]


def draw() -> str:
    """Return the picture as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">',
        f"<style>{STYLE}</style>",
        '<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z"/></marker>',
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>',
    ]
    for title, x, y, width, height in FRAMES:
        parts.append(f'<rect class="frame" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>')
        parts.append(f'<text class="left" x="{x + 10}" y="{y + 16}">{escape(title)}</text>')
    for corners in ARROWS:
        parts.append(f'<polyline class="arrow" points="{corners}"/>')
    for x, y, text in NOTES:
        parts.append(f'<text x="{x}" y="{y}">{escape(text)}</text>')
    config = DistilBertConfig(vocab_size=8, dim=8, n_heads=2, n_layers=1, hidden_dim=8, max_position_embeddings=8)
    classes = {"DistilBertModel": DistilBertModel, **vars(heads)}
    for class_name, boxes in BOXES.items():
        model = classes[class_name](config)
        for name, place in boxes.items():
            parts.append(draw_box(class_name, name, place, formula(name.replace("layer.N", "layer.0"), model)))
    return "\n".join([*parts, "</svg>", ""])


def draw_box(class_name: str, name: str, place: Place, text: str) -> str:
    """Return a box with the last part of a step's name and its formula."""
    x, y, width = place
    middle = x + width // 2
    return (
        f'<g data-model="{class_name}" data-step="{name}"><rect class="box" x="{x}" y="{y}" width="{width}" '
        f'height="{BOX}" rx="4"/><text class="name" x="{middle}" y="{y + (15 if text else 21)}">'
        f'{name.rpartition(".")[2]}</text><text x="{middle}" y="{y + 28}">{escape(text)}</text></g>'
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
