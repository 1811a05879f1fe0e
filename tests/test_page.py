"""The attention page and the figure, as far as they can be judged without a browser."""

import base64
import html
import json
import re
import sys

import numpy as np
import pytest
import torch

import minibert
from minibert.study import ablate_heads, attention_figure, attention_page, capture, edit
from minibert.study.page import LIMIT
from minibert.tokenizer.wordpiece import AddedToken

from .command_line import WORDS, load, run
from .models import model

TEXTS = ["a nice day", "but what about tomorrow? im not sure."]
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "x\u2028y",
    "{{js}}",
    "<img src=x onerror=alert(1)>",
    "$x$",
]


def page_data(page):
    """What the page holds."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def unpack(packed, heads, length):
    """A row's (H, S, S)."""
    return torch.from_numpy(np.frombuffer(base64.b64decode(packed), "<f2").reshape(heads, length, length).copy())


def hostile_tokenizer():
    """One that finds tokens in a text that would be markup in a page."""
    vocab = {word: i for i, word in enumerate([*WORDS, *HOSTILE])}
    added = {vocab[token]: AddedToken(token) for token in HOSTILE}
    return minibert.DistilBertTokenizer(vocab, model_max_length=16, added_tokens=added)


def unbounded():
    """A tokenizer for rows of any length."""
    return minibert.DistilBertTokenizer({word: i for i, word in enumerate(WORDS)})


def full_tokenizer():
    """One with a word for each of the model's ids."""
    return minibert.DistilBertTokenizer({word: i for i, word in enumerate([*WORDS, *(f"w{i}" for i in range(30))])})


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return load(checkpoint)


def test_page_holds_the_scores_of_both_runs_as_float16(loaded):
    model, tokenizer = loaded
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    data = page_data(attention_page(model, tokenizer, TEXTS, layers=[1], heads=[3, 0]))
    length = inputs.input_ids.shape[1]
    assert (data["layers"], data["heads"], data["real"]) == ([1], [0, 3], inputs.attention_mask.tolist())
    assert data["tokens"][0] == ["[CLS]", "a", "nice", "day", "[SEP]", *["[PAD]"] * (length - 5)]
    for run_, mask in zip(data["runs"], (None, inputs.attention_mask), strict=True):
        with capture(model, "*.layer.1.attention.scores") as steps, torch.no_grad():
            logits = model(inputs.input_ids, mask).logits
        (scores,) = steps.values()
        for row in range(2):
            assert torch.equal(unpack(run_["scores"][0][row], 2, length), scores[row, [0, 3]].half())
        assert run_["probs"] == {}  # derived, not carried
        assert run_["predictions"][1][0][0] == "NEGATIVE"
        assert run_["predictions"][1][0][1].startswith(f"{logits[1, 0]:.4f} (")


def test_base_size_with_64_tokens_is_under_2_mb_and_grows_as_stated():
    sizes = {"n_layers": 6, "n_heads": 12, "dim": 48, "max_position_embeddings": 128}
    wide = model("DistilBertForSequenceClassification", **sizes)
    page = attention_page(wide, unbounded(), "a nice day", length=64)
    assert len(page.encode()) < 2e6
    longer = attention_page(wide, unbounded(), "a nice day", length=128)
    assert len(longer) - len(page) == pytest.approx(16 / 3 * 72 * (128**2 - 64**2), rel=1e-3)


def test_too_large_a_page_asks_for_layers_or_heads():
    wide = model(n_layers=6, n_heads=12, dim=48, max_position_embeddings=512)
    with pytest.raises(ValueError, match=r"96 MiB, more than 32, .* layers= or heads="):
        attention_page(wide, unbounded(), "a nice day", length=512)
    assert len(attention_page(wide, unbounded(), "a nice day", length=512, layers=[5], heads=[0, 11])) < LIMIT


def test_the_maps_alone_may_be_as_large_as_the_limit_of_a_page(loaded, monkeypatch):
    model, tokenizer = loaded
    for layers, heads in (([1, 0, 1], [2, 0, 1, 0]), (None, [3, 2, 1])):
        data = page_data(attention_page(model, tokenizer, TEXTS, layers=layers, heads=heads, after=edit(model, {})))
        assert (data["layers"], data["heads"]) == ([0, 1], [0, 1, 2] if layers else [1, 2, 3])
    size = 2 * 2 * 2 * 3 * 11**2 * 16 // 3  # states, rows, layers, heads, tokens
    monkeypatch.setattr("minibert.study.page.LIMIT", size)
    with pytest.raises(ValueError, match="with the names of all labels and tokens"):  # only with all the rest
        attention_page(model, tokenizer, TEXTS * 2, heads=[2, 0, 1, 0])
    monkeypatch.setattr("minibert.study.page.LIMIT", size - 1)
    with pytest.raises(ValueError, match="for 2 rows of 11 tokens in 2 layers of 3 heads"):
        attention_page(model, tokenizer, TEXTS, heads=[0, 1, 2], after=edit(model, {}))
    with pytest.raises(ValueError, match="for 4 rows of 11 tokens in 2 layers of 3 heads"):
        attention_page(model, tokenizer, TEXTS * 2, heads=[0, 1, 2])


def test_a_page_of_many_long_labels_is_refused():
    labels = {i: f"{i:05}" + "é" * 900 for i in range(4000)}  # six bytes each in JSON, in both runs
    many = model("DistilBertForSequenceClassification", id2label=labels)
    with pytest.raises(ValueError, match=r"41 MiB, more than 32, with the names of all labels and tokens"):
        attention_page(many, unbounded(), "a nice day")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": [0, 2]}, "layers must be 0 to 1, got 2$"),
        ({"heads": [-1]}, "heads must be 0 to 3, got -1$"),
        ({"heads": []}, "heads must be 0 to 3, got none"),
    ],
)
def test_a_layer_or_head_that_the_model_does_not_have_is_refused(loaded, arguments, message):
    with pytest.raises(ValueError, match=message):
        attention_page(*loaded, TEXTS, **arguments)


@pytest.mark.parametrize("picture", [attention_page, attention_figure])
def test_dropout_and_choices_are_refused(loaded, picture):
    if picture is attention_figure:
        pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        picture(model().train(), loaded[1], TEXTS)
    with pytest.raises(ValueError, match=r"pass its \.distilbert"):
        picture(model("DistilBertForMultipleChoice"), loaded[1], TEXTS)


def test_tokens_and_title_cannot_become_markup(loaded):
    text = " a ".join(HOSTILE)
    page = attention_page(loaded[0], hostile_tokenizer(), text, title="</title><script>alert(1)</script>{{data}}")
    tokens = page_data(page)["tokens"][0]
    assert [token for token in tokens if token in HOSTILE] == HOSTILE
    assert page.count("<script") == page.count("</script") == 2  # the data and the program
    assert page.count("<!--") == 1
    assert "<img" not in page
    assert "x\u2028y" not in page
    assert "<title>&lt;/title&gt;&lt;script&gt;alert(1)&lt;/script&gt;{{data}}</title>" in page


def test_page_allows_itself_no_request(loaded):
    page = attention_page(*loaded, TEXTS)
    assert "default-src 'none'" in page
    assert re.findall(r"https?://[^\"']*", page) == ["http://www.w3.org/2000/svg"]  # a name, not an address to load
    assert not re.search(r"\b(src|href)=(?!\"data:,\")", page)


def test_notebook_shows_the_page_in_a_frame_of_its_own(loaded):
    page = attention_page(*loaded, TEXTS)
    assert isinstance(page, str)
    assert html.unescape(re.search(r'<iframe srcdoc="([^"]*)"', page._repr_html_())[1]) == page
    assert re.fullmatch(r"<HTML page, 0\.\d\d MB>", repr(page))


def test_a_change_adds_its_own_two_runs_and_is_undone(loaded):
    model, tokenizer = loaded
    before = page_data(attention_page(model, tokenizer, TEXTS))
    data = page_data(attention_page(model, tokenizer, TEXTS, after=ablate_heads(model, [(0, 1)])))
    assert [(run_["state"], run_["masked"]) for run_ in data["runs"]] == [
        ("before", False), ("before", True), ("after", False), ("after", True)
    ]  # fmt: skip
    assert [run_["scores"] for run_ in data["runs"][:2]] == [run_["scores"] for run_ in before["runs"]]
    assert data["runs"][3]["scores"][0] == data["runs"][1]["scores"][0]  # layer 0 comes before the change
    assert data["runs"][3]["scores"][1] != data["runs"][1]["scores"][1]
    assert data["runs"][3]["predictions"] != data["runs"][1]["predictions"]
    assert page_data(attention_page(model, tokenizer, TEXTS)) == before


@pytest.mark.parametrize("step", ["mask", "masked_scores", "probs"])
def test_an_edit_past_the_scores_carries_the_probabilities(loaded, step):
    model, tokenizer = loaded
    change = edit(model, {f"*.layer.1.attention.{step}": lambda value: value.roll(1, -1)})
    *_, last = page_data(attention_page(model, tokenizer, TEXTS, after=change))["runs"]
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    change = edit(model, {f"*.layer.1.attention.{step}": lambda value: value.roll(1, -1)})
    with change, capture(model, "*.layer.1.attention.probs") as steps, torch.no_grad():
        model(**inputs)
    (probs,) = steps.values()
    assert list(last["probs"]) == ["1"]
    assert torch.equal(unpack(last["probs"]["1"][0], 4, probs.shape[-1]), probs[0].half())


def test_a_classifier_says_each_label_and_its_share(loaded):
    model, tokenizer = loaded
    with torch.no_grad():
        logits = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits[0]
    answers = [f"{logits[i]:.4f} ({logits.softmax(0)[i]:.1%})" for i in range(2)]
    predictions = page_data(attention_page(model, tokenizer, TEXTS))["runs"][1]["predictions"][0]
    assert predictions == [list(pair) for pair in zip(["NEGATIVE", "POSITIVE"], answers, strict=True)]


def test_an_encoder_without_a_head_predicts_nothing():
    data = page_data(attention_page(model(), full_tokenizer(), ["a day"]))
    assert [run_["predictions"] for run_ in data["runs"]] == [[[]], [[]]]


def predicted(made, text):
    """What the page says of a text that is padded to eight tokens, with the mask; and the logits."""
    inputs = full_tokenizer()([text], padding="max_length", max_length=8, return_tensors="pt")
    with torch.no_grad():
        logits = made(**inputs).logits[0]
    data = page_data(attention_page(made, full_tokenizer(), [text], length=8))
    return data["runs"][1]["predictions"][0], logits


def test_labels_are_those_of_the_real_tokens():
    found, logits = predicted(model("DistilBertForTokenClassification", id2label={0: "O", 1: "B"}), "a nice day")
    labels = ["OB"[label] for label in logits.argmax(-1).tolist()]
    assert found == [list(pair) for pair in zip("[CLS] a nice day [SEP]".split(), labels[:5], strict=True)]


def test_a_masked_token_gets_the_three_likeliest_words():
    found, logits = predicted(model("DistilBertForMaskedLM"), "a [MASK] day [MASK]")
    expected = []
    for place in (2, 4):
        shares = logits[place].softmax(-1)
        best = shares.argsort(descending=True)[:3].tolist()
        words = zip(full_tokenizer().convert_ids_to_tokens(best), shares[best].tolist(), strict=True)
        expected.append([f"[MASK] at {place}", ", ".join(f"{word} {share:.1%}" for word, share in words)])
    assert found == expected


def test_an_answer_is_never_padding():
    made = model("DistilBertForQuestionAnswering")
    tokenizer = full_tokenizer()
    inputs = tokenizer(["a nice day"], padding="max_length", max_length=8, return_tensors="pt")
    pad = torch.tensor([[0.0, 0.0, 0, 0, 0, 9, 9, 9]])[..., None]
    with edit(made, {"qa_outputs": lambda logits: logits + pad}), torch.no_grad():
        start = made(**inputs).start_logits[0]
    assert start.argmax() >= 5  # the trap: [PAD] has the largest logit
    change = edit(made, {"qa_outputs": lambda logits: logits + pad})
    *_, last = page_data(attention_page(made, tokenizer, ["a nice day"], length=8, after=change))["runs"]
    best = int(start[:5].argmax())
    token = tokenizer.convert_ids_to_tokens(inputs.input_ids[0].tolist())[best]
    assert last["predictions"][0][0] == ["start", f"{token} at {best} ({start[best]:.4f})"]
    plain = page_data(attention_page(made, tokenizer, ["a nice day"], length=8))["runs"][0]["predictions"][0]
    with torch.no_grad():
        end = made(inputs.input_ids).end_logits[0]
    best = int(end[:5].argmax())
    assert plain[1] == ["end", f"{'[CLS] a nice day [SEP]'.split()[best]} at {best} ({end[best]:.4f})"]


def test_length_truncates_and_pads(loaded):
    short, long = page_data(attention_page(*loaded, TEXTS, length=7))["tokens"]
    assert short == "[CLS] a nice day [SEP] [PAD] [PAD]".split()
    assert long == "[CLS] but what about tomorrow ? [SEP]".split()


def test_a_row_may_be_as_long_as_the_model_has_positions(loaded):
    assert len(page_data(attention_page(*loaded, "a day", length=16))["tokens"][0]) == 16
    with pytest.raises(ValueError, match="length must be at most 16, the number of the model's positions, got 17"):
        attention_page(*loaded, "a day", length=17)


def test_pairs_of_texts_share_a_row(loaded):
    (tokens,) = page_data(attention_page(*loaded, ["a day"], ["not sure"]))["tokens"]
    assert tokens == "[CLS] a day [SEP] not sure [SEP]".split()


def test_scores_beyond_float16_are_clamped_to_its_range(loaded):
    model, tokenizer = loaded
    change = edit(model, {"*.layer.0.attention.scores": lambda scores: scores * 1e6})
    *_, last = page_data(attention_page(model, tokenizer, TEXTS, after=change))["runs"]
    scores = unpack(last["scores"][0][0], 4, 11)
    assert (scores.min(), scores.max()) == (-65504, 65504)


def test_half_precision_models_have_their_own_mask(loaded):
    half = load_half(loaded[0])
    assert page_data(attention_page(half, loaded[1], TEXTS))["mask"] == torch.finfo(torch.bfloat16).min


def load_half(classifier):
    made = minibert.DistilBertForSequenceClassification(classifier.config).to(torch.bfloat16).eval()
    made.load_state_dict(classifier.state_dict())
    return made


def test_view_writes_the_page(checkpoint, capsys, tmp_path):
    file = tmp_path / "page.html"
    status, out, _ = run(capsys, "view", *TEXTS, "-o", file, "--model", checkpoint, "--layers", "1", "--heads", "0,2")
    assert (status, out) == (0, f"{file}: {file.stat().st_size / 1e6:.2f} MB\n")
    data = page_data(file.read_text(encoding="utf-8"))
    assert (data["layers"], data["heads"], len(data["tokens"])) == ([1], [0, 2], 2)
    _, out, _ = run(capsys, "view", "a day", "-o", file, "--model", checkpoint, "--length", 9, "--json")
    assert json.loads(out) == {"file": str(file), "bytes": file.stat().st_size}
    assert len(page_data(file.read_text(encoding="utf-8"))["tokens"][0]) == 9


def test_view_loads_the_head_that_the_checkpoint_has(capsys, tmp_path):
    model("DistilBertForMaskedLM").save_pretrained(tmp_path)
    full_tokenizer().save_pretrained(tmp_path)
    status, _, _ = run(capsys, "view", "a [MASK] day", "-o", tmp_path / "page.html", "--model", tmp_path)
    assert status == 0
    data = page_data((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert data["runs"][1]["predictions"][0][0][0] == "[MASK] at 2"


def test_view_says_what_is_wrong(checkpoint, capsys, tmp_path):
    status, _, err = run(capsys, "view", "-o", tmp_path / "page.html", "--model", checkpoint, "--layers", "7")
    assert (status, err) == (2, "minibert: error: layers must be 0 to 1, got 7\n")
    status, _, err = run(capsys, "view", "-o", tmp_path / "none" / "page.html", "--model", checkpoint)
    assert status == 2
    assert "give the name of a file, in a folder that exists" in err


def spans(patch):
    """What a patch covers: (left, right), (lower, upper)."""
    box = patch.get_path().transformed(patch.get_patch_transform()).get_extents()
    return (box.x0, box.x1), (box.y0, box.y1)


def test_figure_grows_with_its_panels_and_tokens(loaded):
    pytest.importorskip("matplotlib")
    one, two = (attention_figure(*loaded, TEXTS, masks=masks).get_size_inches() for masks in ([True], [True, False]))
    longer = attention_figure(*loaded, TEXTS, masks=[True], length=16).get_size_inches()
    assert one[1] == two[1] < longer[1]
    assert one[0] < longer[0]
    assert two[0] == pytest.approx(one[0] + one[1])
    assert two.tolist() == pytest.approx([2 * (1.4 + 0.22 * 11) + 0.6, 1.4 + 0.22 * 11])  # inches, 11 tokens


def test_figure_is_of_the_row_that_is_asked_for(loaded):
    pytest.importorskip("matplotlib")
    (panel, _) = attention_figure(*loaded, TEXTS, row=1, masks=[True]).axes
    assert [label.get_text() for label in panel.get_xticklabels()][:3] == "[CLS] but what".split()
    assert not panel.patches  # no padding in this row
    with capture(loaded[0], "*.layer.0.attention.probs") as steps, torch.no_grad():
        loaded[0](**loaded[1](TEXTS, padding=True, return_tensors="pt"))
    (probs,) = steps.values()
    assert np.array_equal(panel.images[0].get_array(), probs[1, 0].numpy())
    assert not any(label.get_parse_math() for label in (*panel.get_xticklabels(), *panel.get_yticklabels()))


def test_figure_shows_the_probabilities_with_the_padding_hatched(loaded, tmp_path):
    pytest.importorskip("matplotlib")
    model, tokenizer = loaded
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    figure = attention_figure(model, tokenizer, TEXTS, layer=1, head=2)
    for panel, mask in zip(figure.axes, (None, inputs.attention_mask), strict=False):
        with capture(model, "*.layer.1.attention.probs") as steps, torch.no_grad():
            model(inputs.input_ids, mask)
        (probs,) = steps.values()
        assert np.array_equal(panel.images[0].get_array(), probs[0, 2].numpy())
        assert (panel.get_xlabel(), panel.get_ylabel()) == ("key", "query")
        assert [label.get_text() for label in panel.get_yticklabels()][:4] == "[CLS] a nice day".split()
        norm = panel.images[0].norm
        assert (norm.gamma, norm.vmin, norm.vmax) == (0.5, 0, 1)  # the same colours in each panel
        assert all(label.get_rotation() == 90 for label in panel.get_xticklabels())
        padded = (inputs.attention_mask[0] == 0).nonzero()[:, 0].tolist()
        hatched = [spans(patch)[0] for patch in panel.patches if patch.get_hatch()]
        dimmed = [spans(patch)[1] for patch in panel.patches if not patch.get_hatch()]
        assert hatched == dimmed == [(i - 0.5, i + 0.5) for i in padded]
        assert not any(patch.get_fill() for patch in panel.patches if patch.get_hatch())  # the weights show through
        assert panel.get_title() == f"layer 1, head 2, {'without' if mask is None else 'with'} mask"
    assert figure.axes[2].get_ylabel() == "probability"
    for suffix in ("png", "svg", "pdf"):
        figure.savefig(tmp_path / f"figure.{suffix}")


def test_figure_is_of_the_first_head_and_row_without_and_with_the_mask(loaded):
    pytest.importorskip("matplotlib")
    panels = attention_figure(*loaded, TEXTS).axes[:2]
    assert [panel.get_title() for panel in panels] == [f"layer 0, head 0, {how} mask" for how in ("without", "with")]
    assert [label.get_text() for label in panels[0].get_yticklabels()][:4] == "[CLS] a nice day".split()


def test_figure_takes_a_dollar_for_a_token(loaded, tmp_path):
    pytest.importorskip("matplotlib")
    figure = attention_figure(loaded[0], hostile_tokenizer(), "a $x$ day", masks=[True])
    assert len(figure.axes) == 2  # a panel and the colour bar
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()][2] == "$x$"
    figure.savefig(tmp_path / "figure.svg")


def test_figure_refuses_what_model_and_batch_do_not_have(loaded):
    pytest.importorskip("matplotlib")
    for arguments, message in (
        ({"layer": 2}, "layer must be 0 to 1, got 2"),
        ({"head": 4}, "head must be 0 to 3, got 4"),
        ({"row": 2}, "row must be 0 to 1, got 2"),
        ({"masks": []}, "masks is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            attention_figure(*loaded, TEXTS, **arguments)


def test_figure_without_matplotlib_names_the_extra(loaded, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.colors", None)
    with pytest.raises(ImportError, match=r"pip install matplotlib \(the extra plot\)"):
        attention_figure(*loaded, TEXTS)
