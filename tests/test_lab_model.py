"""The laboratory's JavaScript, as it ships, in Chromium: its model, its edits and its tokenizer against Python's.

Every case runs in one call to the browser. The mutants at the end show that these cases notice a mistake.
"""

import itertools
import random
from functools import partial

import numpy as np
import torch

from minibert import DEMO, DistilBertTokenizer
from minibert.study import attention_lab, capture, edit, oracle
from minibert.study.page import TEMPLATES
from minibert.tokenizer.wordpiece import AddedToken

from .browser import run_script
from .command_line import load
from .models import MASKS
from .models import model as random_model
from .test_page import full_tokenizer, page_data

SOURCE = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in ("shared.js", "lab_model.js"))
METHODS = ("none", "finfo.min", "-inf", "-1e4", "-1e9", "multiply", "rows")
PRECISIONS = ("float64", "float32", "bfloat16", "float16")
TOLERANCE = 1e-12

# Runs cases and texts on pages' own data. A number that JSON lacks becomes a string.
RUN = """
const numbers = data => Array.from(data, x => Number.isFinite(x) ? x : String(x));
const matrix = rows => tensor([rows.length, rows[0].length], Float64Array.from(rows.flat()));
const models = given.pages.map(page => new DistilBertForSequenceClassification(page.config, read_weights(page)));
const steps = given.cases.map(({ page, ids, bits, changes }) => {
  const attention_mask = matrix(bits), mask = additive_mask(attention_mask, changes.method, changes.precision);
  const steps = models[page].forward(matrix(ids), mask, edits(given.pages[page].config, attention_mask, changes));
  return Object.entries(steps).filter(([name]) => !given.keep || name === given.keep)
    .map(([name, { shape, data }]) => [name, shape, numbers(data)]);
});
const tokenizers = given.pages.map(page => new DistilBertTokenizer(page.tokenizer));
return { steps, ids: given.texts.map(([page, text]) => tokenizers[page].encode(text).input_ids) };
"""
RUN_EACH = """
return given.sources.map(source => {
  try { return new Function("given", source)(given.data); } catch { return null; }
});
"""
USUAL = {"method": "finfo.min", "precision": "float64", "off": [], "scale": {}}


def packed(pages, cases=(), texts=(), keep=None):
    """What RUN takes: pages, pairs of a model and its tokenizer; cases and texts by the number of their page.

    keep: the only step to return; None for all.
    """
    return {
        "pages": [page_data(attention_lab(*page, "a")) for page in pages],
        "cases": [
            {"page": page, "ids": ids.tolist(), "bits": bits.tolist(), "changes": USUAL | changes}
            for page, ids, bits, changes in cases
        ],
        "texts": texts,
        "keep": keep,
    }


def arrays(case):
    """The steps of a case by their names."""
    return {name: np.array([float(x) for x in data]).reshape(shape) for name, shape, data in case}


def classifier(**config):
    return random_model("DistilBertForSequenceClassification", **config).double()


def edited(model, ids, bits, changes):
    """What Python's `edit` makes of the same changes: all steps by name, in float64."""
    method, precision = changes["method"], changes["precision"]
    numbers = {"finfo.min": torch.finfo(getattr(torch, precision)).min, "multiply": 0, "none": 0}
    ignore = numbers["finfo.min"] if method == "rows" else numbers.get(method)
    ignore = round_to(np.float64(method), precision) if ignore is None else ignore
    added = torch.where(bits == 0, torch.tensor(ignore, dtype=torch.float64), 0.0)  # (B, S)
    added = added[:, None, :, None].expand(-1, -1, -1, ids.shape[1]) if method == "rows" else added[:, None, None, :]
    factors, kept = torch.ones(2, model.config.n_layers, model.config.n_heads, 1, 1, dtype=torch.float64)
    for place, factor in changes.get("scale", {}).items():
        factors[tuple(map(int, place.split(".")))] = factor
    for place in changes.get("off", []):
        kept[tuple(map(int, place.split(".")))] = 0
    replaced = {"*.attention.masked_scores": lambda scores: rounded(scores, precision)}
    for layer in range(model.config.n_layers):
        name = f"*.layer.{layer}.attention."
        replaced[name + "scores"] = partial(lambda factor, scores: rounded(scores * factor, precision), factors[layer])
        replaced[name + "context"] = partial(lambda kept, context: torch.where(kept == 0, 0, context), kept[layer])
    if method == "multiply":
        replaced["*.attention.probs"] = lambda probs: probs * bits[:, None, None, :]
    elif method != "none":
        replaced["*.attention.mask"] = lambda mask: added
    mask = None if method in ("none", "multiply") else torch.ones_like(bits)  # the edit has the bits
    with edit(model, replaced), capture(model) as steps, torch.no_grad():
        model(ids, mask)
    return {name: value.numpy() for name, value in steps.items()}


def rounded(x, precision):
    return torch.from_numpy(round_to(x.numpy(), precision))


def round_to(x, precision):
    """Round float64 to nearest, ties to even; bfloat16, which NumPy lacks, by its definition."""
    if precision != "bfloat16":
        with np.errstate(over="ignore"):
            return x.astype(precision).astype(np.float64)
    with np.errstate(all="ignore"):
        exponent = np.maximum(np.frexp(x)[1] - 1, -126)
        unit = np.ldexp(1.0, exponent - 7)
        result = np.where(np.isfinite(x), np.rint(x / unit) * unit, x)
    return np.where(np.abs(result) > torch.finfo(torch.bfloat16).max, np.copysign(np.inf, result), result)


def difference(ours, theirs):
    """The greatest difference of two arrays, relative to numbers above 1; NaN must be in the same places."""
    if ours.shape != theirs.shape or not np.array_equal(np.isnan(ours), np.isnan(theirs)):
        return np.inf
    differ = ~np.isnan(ours) & (ours != theirs)
    return (np.abs(ours[differ] - theirs[differ]) / np.maximum(1, np.abs(theirs[differ]))).max(initial=0)


def test_every_step_is_that_of_the_oracle(browser):
    small = full_tokenizer()
    pages = [(classifier(), small), (classifier(activation="relu", num_labels=3, n_layers=1), small), load(DEMO)]
    cases = []
    for page, (kind, make), shape in itertools.product(range(3), MASKS.items(), [(2, 5), (1, 1)]):
        ids = torch.randint(1, pages[page][0].config.vocab_size, shape)
        bits = torch.ones_like(ids) if make(*shape) is None else make(*shape)
        cases.append((page, ids, bits, {"method": "none" if kind == "none" else "finfo.min"}))
    result = run_script(browser, SOURCE + RUN, packed(pages, cases))
    for (page, ids, bits, changes), steps in zip(cases, map(arrays, result["steps"]), strict=True):
        model = pages[page][0]
        expected = oracle.run(model.state_dict(), model.config, ids, None if changes["method"] == "none" else bits)
        assert list(steps) == list(expected)  # all of them, in the order of execution
        for name, value in expected.items():
            assert difference(steps[name], value) <= TOLERANCE, name


def edit_cases():
    """Every method in every precision, with heads knocked out and scaled; on rows with nothing to attend to, too."""
    ids = torch.randint(1, 50, (3, 5))
    usual = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0], [0, 1, 1, 1, 0]])
    nothing = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]])
    heads = {"off": ["0.1", "1.3", "1.0"], "scale": {"0.0": 2.5, "1.2": 0, "0.3": 40}}
    for method, precision in itertools.product(METHODS, PRECISIONS):
        yield 0, ids, usual, {"method": method, "precision": precision}
        yield 0, ids, nothing, {"method": method, "precision": precision, **heads}


def test_every_method_precision_and_head_edit_is_that_of_python(browser):
    model = classifier()
    cases = list(edit_cases())
    result = run_script(browser, SOURCE + RUN, packed([(model, full_tokenizer())], cases))
    became_nan = set()
    for (_, ids, bits, changes), steps in zip(cases, map(arrays, result["steps"]), strict=True):
        expected = edited(model, ids, bits, changes)
        for name in steps.keys() - {"logits"}:
            value = np.broadcast_to(expected[name], steps[name].shape)
            assert difference(steps[name], value) <= TOLERANCE, (changes, name)
        assert difference(steps["logits"], expected["classifier"]) <= TOLERANCE
        became_nan.add(bool(np.isnan(expected["classifier"]).any()))
    assert became_nan == {True, False}


def test_scores_are_rounded_to_the_nearest_in_each_precision(browser):
    generator = np.random.default_rng(0)
    values = np.concatenate(
        [
            generator.standard_normal(2000) * 10.0 ** generator.integers(-10, 6, 2000),
            np.arange(2**15).astype(np.uint16).view(np.float16).astype(np.float64)[:31744:7],  # float16's own values
            np.array([0, -0.0, 65504, 65519.999, 65520, -65520, 2**-24, 2**-25, 1.5 * 2**-24, 3.4e38, -3.4e38]),
            np.array([1, 3, 5]) / 2048 + 1,  # halfway between two of float16: to the even one
            np.array([1, 3, 5]) / 256 + 1,  # and of bfloat16
        ]
    )
    script = SOURCE + "return given[0].map(p => given[1].map(x => String(PRECISIONS[p].round(x))));"
    for precision, got in zip(PRECISIONS, run_script(browser, script, [PRECISIONS, values.tolist()]), strict=True):
        assert np.array_equal(np.array(got, np.float64), round_to(values, precision)), precision
    single = values.astype(np.float32)  # PyTorch rounds these to bfloat16 without an intermediate step
    assert np.array_equal(
        torch.from_numpy(single).bfloat16().double().numpy(), round_to(single.astype(np.float64), "bfloat16")
    )


def random_texts(count):
    generator = random.Random(0)
    areas = [(1, 0x7F), (1, 0x250), (0x300, 0x600), (0x600, 0x3000), (0x3000, 0xD800), (0xE000, 0x20000)]
    areas += [(0x1D000, 0x1F000), (0x20000, 0x110000)]
    return ["".join(chr(generator.randrange(*generator.choice(areas))) for _ in range(30)) for _ in range(count)]


WRITTEN = [
    "",
    "   ",
    "Today is a nice day!",
    "Naïve façade, İstanbul, ΑΣ ΟΔΟΣ, straße, ﬁn",
    "한국어 漢字とかな x\u0301\u0323\u0316y \u1c89\ua7dc",
    "[MASK]nice[PAD] [mask] [ SEP ] [CLS][CLS]",
    "a\u200bb\u00adc\ufffd\ue000d\u2028e\u3000f\tg\nh",
    "don't $5 3.14 @user #tag ##or tomorrow",
    "x" * 100 + " " + "y" * 101,
    "👩‍👩‍👧 🏳️‍🌈 e\u0301\u0302\u0303",
    "\u202eright to left\u202c <script>alert(1)</script>",
    "constructor __proto__ toString",
    "film " * 300,
]


def tokenizers():
    """The demo's, and small ones that set all that can be set."""
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] a nice day ##day New york new-york É e ##e 漢 ##字 ! İ i ##\u0307".split()
    words += ["οδοσ", "a\u302e\u08d4"]
    vocab = {word: i for i, word in enumerate(words)}
    added = {
        30: AddedToken("New-York", normalized=True),
        31: AddedToken("nice day", single_word=True),
        32: AddedToken("<*>(+)"),
        34: AddedToken("<*>"),
        33: AddedToken("ÉE", normalized=True, single_word=True),
    }
    texts = [
        *WRITTEN,
        *random_texts(40),
        "New-York new-york NEW-YORK",
        "a nice day, nice days xnice day\u0301 nice day² nice day\u200d nice day",
    ]
    texts += ["a<*>(+)b <*>( +)", "e" * 100, "ΟΔΟΣ", "a\u08d4\u302e", "ÉE éé eÉE \u0301ÉE aniceday 漢字漢"]
    texts += ["ÉE_ ée _ _ÉE ÉE\ufe33"]
    yield DistilBertTokenizer.from_pretrained(DEMO), [*WRITTEN, *random_texts(400)]
    for settings in (
        {},
        {"do_lower_case": False, "truncation_side": "left", "model_max_length": 9},
        {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False},
        {"strip_accents": False},
    ):
        yield DistilBertTokenizer(vocab, added_tokens=added, **settings), texts


def expected_ids(tokenizer, texts):
    length = tokenizer.model_max_length or 16  # the positions of the small model
    return [tokenizer(text, truncation=True, max_length=length).input_ids for text in texts]


def test_ids_are_those_of_python(browser):
    given = list(tokenizers())
    pages = [load(DEMO), *((classifier(), tokenizer) for tokenizer, _ in given[1:])]
    texts = [[page, text] for page, (_, page_texts) in enumerate(given) for text in page_texts]
    got = run_script(browser, SOURCE + RUN, packed(pages, texts=texts))["ids"]
    expected = [ids for tokenizer, page_texts in given for ids in expected_ids(tokenizer, page_texts)]
    assert [text for text, ours, theirs in zip(texts, got, expected, strict=True) if ours != theirs] == []


# What the source says, and a mistake that a reader would not see at once.
MUTANTS = [
    ("q.shape[3] ** -0.5", "q.shape[3] ** 0.5"),
    ("q.shape[3] ** -0.5", "hidden_states.shape[2] ** -0.5"),
    ("variance + 1e-12", "variance + 1e-5"),
    ("2, 0) / D", "2, 0) / (D - 1)"),
    ("x * (1 + erf(x / Math.SQRT2)) / 2", "x / (1 + Math.exp(-1.702 * x))"),
    ("1e-17 * Math.abs(sum)", "1e-9 * Math.abs(sum)"),
    ("matmulTransposed(q, k)", "matmulTransposed(k, q)"),
    ("x.data[(b * S + s) * D + h * E + e]", "x.data[(b * S + s) * D + e * H + h]"),
    ("add(attended, hidden_states)", "attended"),
    ("add(fed, x)", "add(fed, hidden_states)"),
    ("hidden_states.data.subarray(b * S * D, b * S * D + D)", "hidden_states.data.subarray(b * D, b * D + D)"),
    ('apply(relu, head.linear("pre_classifier", first))', 'head.linear("pre_classifier", first)'),
    ("data.map((value, i) => value + bias[i % D])", "data"),
    ("Math.max(a, b));\n  let sum", "Math.max(a, b, 0)) + 800;\n  let sum"),
    ("attention_mask.data[bit] ? 0 : ignore", "attention_mask.data[bit] ? ignore : 0"),
    ('method === "rows" ? number : number * S + key', "number * S + key"),
    ("Math.floor(number / (H * S)) * Q", "Math.floor(number / (H * S))"),
    ("? -max : round(", "? -Infinity : round("),
    ("(rounded) > max ? Math.sign(x) * Infinity", "(rounded) > max ? Math.sign(x) * max"),
    ("x / unit + 1.5 * 2 ** 52 - 1.5 * 2 ** 52", "Math.trunc(x / unit)"),
    ("round(row[key] * factors[head(number, S)])", "round(row[key]) * factors[head(number, S)]"),
    ("Math.floor(number / rows) % n_heads", "Math.floor(number / rows / n_heads) % n_heads"),
    ("scores => apply(round, scores)", "scores => scores"),
    ("row[key] * attention_mask.data[b * S + key]", "row[key] * attention_mask.data[key]"),
    ("row.map(() => 0)", "row.map(x => x / 2)"),
    ('"##" : ""', '"" : ""'),
    ("chars.length > MAX_WORD_CHARS", "chars.length >= MAX_WORD_CHARS"),
    ('newer.test(char) ? char : char.normalize("NFD")', "char"),
    ('replace(text, "PUNCTUATION", " $& ")', "text"),
    ('this.replace(text, "CJK", " $& ")', "text"),
    ('Array.from(text, char => this.lower(char)).join("")', "text.toLowerCase()"),
    ('run => run.normalize("NFD")', "run => run"),
    ("sort((a, b) => [...b].length - [...a].length)", "sort()"),
    ("[before.at(-1), after[0], ...marks]", "[after[0], ...marks]"),
    ("[before.at(-2), after[1]]", "[before.at(-2)]"),
]


def test_mistakes_in_the_javascript_are_noticed(browser):
    model = classifier()
    given = [(tokenizer, [*texts[:20], *texts[-8:]]) for tokenizer, texts in list(tokenizers())[1:]]
    cases = [case for case in edit_cases() if case[3]["precision"] in ("float64", "float16")]
    texts = [[page, text] for page, (_, page_texts) in enumerate(given) for text in page_texts]
    data = packed([(model, tokenizer) for tokenizer, _ in given], cases, texts, keep="logits")
    logits = [edited(model, ids, bits, changes)["classifier"] for _, ids, bits, changes in cases]
    ids = [ids for tokenizer, page_texts in given for ids in expected_ids(tokenizer, page_texts)]
    sources = [SOURCE]
    for old, new in MUTANTS:
        assert SOURCE.count(old) == 1, old
        sources.append(SOURCE.replace(old, new))
    results = run_script(browser, RUN_EACH, {"sources": [source + RUN for source in sources], "data": data})

    def right(result):
        steps = [arrays(case)["logits"] for case in result["steps"]]
        worst = max(difference(ours, theirs) for ours, theirs in zip(steps, logits, strict=True))
        return result["ids"] == ids and worst <= TOLERANCE

    assert right(results[0])
    unnoticed = [mutant for mutant, result in zip(MUTANTS, results[1:], strict=True) if result and right(result)]
    assert not unnoticed, unnoticed
