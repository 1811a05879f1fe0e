"""scripts/finetune.py: it learns, it goes on after any kill with the same bits, and it refuses bad input by name."""

import json
import logging
import resource
import shutil
import subprocess
import sys
import warnings
from argparse import Namespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from minibert import DEMO, DistilBertForSequenceClassification, DistilBertTokenizer
from minibert.pipeline import MaskFiller, TextClassifier, TokenClassifier

from .finetuning import LEARNS_FAST, SCRIPTS, module, results, save_model, write_reviews, write_tags
from .forked_training import WORLDS, gradients_of_a_step
from .machine import needs

finetune, data = module(), module("finetune_data")


pytestmark = pytest.mark.usefixtures("torch_as_before")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint of a classifier with other labels, so that a training draws a new head."""
    folder = tmp_path_factory.mktemp("model")
    save_model(folder)
    return folder


@pytest.fixture
def reviews(tmp_path):
    return write_reviews(tmp_path / "train.jsonl")


@pytest.fixture
def train(model, tmp_path, capsys):
    """Train in this process into tmp_path/out; return the exit status and what was printed on standard error."""

    def run(*arguments, task="sequence", out="out"):
        status = finetune.main([task, "--model", str(model), "--out", str(tmp_path / out), *map(str, arguments)])
        return status, capsys.readouterr().err

    return run


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# It learns


def test_a_classifier_learns_which_word_decides_from_each_kind_of_file_alike(train, tmp_path):
    settings = (*LEARNS_FAST, "--epochs", 4, "--batch-rows", 4)
    for suffix in ("jsonl", "csv", "tsv"):
        files = write_reviews(tmp_path / f"train.{suffix}", 60), write_reviews(tmp_path / f"eval.{suffix}", 30, seed=1)
        assert train("--train", files[0], "--eval", files[1], *settings, out=suffix)[0] == 0
    assert results(tmp_path / "jsonl") == results(tmp_path / "csv") == results(tmp_path / "tsv")
    evaluations = [line for line in metrics(tmp_path / "tsv") if "accuracy" in line]
    assert max(line["accuracy"] for line in evaluations) > 0.8
    assert [sum(map(sum, line["confusion"])) for line in evaluations] == [30] * 4  # each row is counted once
    good, bad = TextClassifier(tmp_path / "tsv")(["today is a nice day", "today is not a day"])
    assert (good.label, bad.label) == ("good", "bad")


def test_a_token_classifier_learns_the_kinds_of_words(train, tmp_path):
    settings = (*LEARNS_FAST, "--epochs", 3, "--batch-rows", 4)
    files = ("--train", write_tags(tmp_path / "train.jsonl", 60), "--eval", write_tags(tmp_path / "eval.jsonl", seed=1))
    assert train(*files, *settings, task="token")[0] == 0
    assert max(line["f1"] for line in metrics(tmp_path / "out") if "f1" in line) > 0.9
    (entities,) = TokenClassifier(tmp_path / "out")(["today is a nice day"])
    assert [(entity.text, entity.label) for entity in entities] == [("nice", "GOOD")]


def test_a_masked_lm_learns_to_predict_and_is_evaluated_on_the_same_masks_each_time(train, tmp_path, reviews):
    files = ("--train", reviews, "--eval", reviews, "--epochs", 4, "--batch-rows", 4, "--new-head")
    train(*files, "--learning-rate", 0, task="masked-lm", out="still")
    still, learnt = [], []
    assert train(*files, *LEARNS_FAST, task="masked-lm")[0] == 0
    for losses, name in ((still, "still"), (learnt, "out")):
        losses += [line["eval_loss"] for line in metrics(tmp_path / name) if "eval_loss" in line]
    assert len(set(still)) == 1
    assert learnt[-1] < still[0]
    (((best, *_),),) = MaskFiller(tmp_path / "out")(["today is a [MASK] day"])
    assert best.token


def test_random_weights_of_the_sizes_in_a_config(train, tmp_path, model, reviews):
    (tmp_path / "sizes.json").write_text('{"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 8}')
    out, config = str(tmp_path / "fresh"), str(tmp_path / "sizes.json")
    arguments = ["--config", config, "--tokenizer", str(model), "--set", "dropout=0", "max_position_embeddings=16"]
    assert finetune.main(["sequence", *arguments, "--train", str(reviews), "--out", out]) == 0
    made = DistilBertForSequenceClassification.from_pretrained(out)
    assert (made.config.dim, made.config.n_layers, made.config.dropout) == (16, 1, 0)
    assert made.config.vocab_size == len(DistilBertTokenizer.from_pretrained(out))


def test_the_metrics_are_plotted(train, tmp_path, reviews):
    pytest.importorskip("matplotlib")
    assert train("--train", reviews, "--eval", reviews, "--plot")[0] == 0
    assert (tmp_path / "out" / "metrics.png").stat().st_size > 1000


def test_a_head_with_the_same_labels_is_kept_in_its_order(train, tmp_path, model):
    file = tmp_path / "train.tsv"
    file.write_text("text\tlabel\nnice\tPOSITIVE\nnot\tNEGATIVE\n")
    train("--train", file, "--learning-rate", 0, "--weight-decay", 0)
    before, after = map(DistilBertForSequenceClassification.from_pretrained, (model, tmp_path / "out"))
    assert after.config.id2label == before.config.id2label
    assert torch.equal(after.classifier.weight, before.classifier.weight)


def test_biases_and_layer_norms_do_not_decay(train, tmp_path, model, reviews):
    train("--train", reviews, "--learning-rate", 1e-30, "--weight-decay", 1e29, "--epochs", 1, "--warmup", 0)
    before, after = map(DistilBertForSequenceClassification.from_pretrained, (model, tmp_path / "out"))
    for name, weight in after.distilbert.named_parameters():
        same = torch.allclose(weight, before.distilbert.get_parameter(name), rtol=0, atol=1e-20)
        assert same == (weight.ndim == 1), name


def test_the_best_epoch_is_kept_and_patience_ends_the_training(train, tmp_path, reviews):
    settings = ("--epochs", 9, "--patience", 2, "--learning-rate", 0, "--batch-rows", 8)  # no epoch beats the first
    _, printed = train("--train", reviews, "--eval", reviews, *settings)
    assert [line["epoch"] for line in metrics(tmp_path / "out") if "accuracy" in line] == [1, 2, 3]
    assert "model of epoch 1" in printed


def test_the_average_of_the_weights_is_what_is_saved(train, tmp_path, reviews):
    settings = ("--train", reviews, "--epochs", 1, "--batch-rows", 4, "--learning-rate", 1e-2)
    train(*settings, "--average", 0.9999)
    train(*settings, "--learning-rate", 0, "--weight-decay", 0, out="first")
    train(*settings, out="last")
    average, first, last = (
        DistilBertForSequenceClassification.from_pretrained(tmp_path / name).classifier.weight
        for name in ("out", "first", "last")
    )
    assert 0 < (average - first).norm() < (last - first).norm() / 100


@pytest.mark.reference
def test_the_result_loads_in_transformers_without_a_warning(train, tmp_path, reviews, caplog):
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    train("--train", reviews, "--epochs", 1)
    caplog.clear()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert caplog.records == []
    assert theirs.config.id2label == {0: "bad", 1: "good"}
    inputs = tokenizer(["today is a nice day", "not sure"], padding=True, return_tensors="pt")
    ours = DistilBertForSequenceClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(ours(**inputs).logits, theirs(**inputs).logits)


# No hidden state


def test_killed_at_every_file_operation_and_after_every_step_it_ends_in_the_same_bytes(tmp_path, model, reviews):
    settings = ["--model", model, "--train", reviews, "--eval", reviews, "--batch-rows", 8, "--micro-batches", 2]
    settings += ["--epochs", 1, "--average", 0.9, "--mask", 0.1]
    printed = run_module("tests.killed_training", tmp_path / "out", "sequence", *settings)
    n_operations, n_steps = map(int, printed.split())
    assert n_operations > 20
    for n in range(n_operations):
        assert results(tmp_path / "out" / str(n)) == results(tmp_path / "out" / "whole"), n
    assert n_steps == 3  # of 4 steps the first one needs no resume
    assert results(tmp_path / "out" / "steps") == results(tmp_path / "out" / "epochs")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs("gpu")])])
def test_an_interrupted_training_says_how_to_go_on_and_ends_in_the_same_bytes(
    train, tmp_path, reviews, monkeypatch, device
):
    settings = ("--train", reviews, "--batch-rows", 4, "--checkpoint-every", 2, "--device", device)
    train(*settings, out="whole")
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "accumulate", interrupt_at(8, finetune.accumulate))
        status, printed = train(*settings)
    assert status == 130
    assert "the same command with --resume goes on" in printed
    assert 0 < len(metrics(tmp_path / "out")) < len(metrics(tmp_path / "whole"))
    assert train(*settings, "--resume")[0] == 0
    assert results(tmp_path / "out") == results(tmp_path / "whole")


def interrupt_at(n, function):
    """The function, which at its nth call behaves as if Ctrl-C had been pressed."""
    calls = iter(range(1, n))

    def interrupted(*arguments):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return function(*arguments)

    return interrupted


def test_where_the_weights_lie_in_memory_changes_no_bit(train, tmp_path, model, reviews):
    tensors = load_file(model / "model.safetensors")
    for n in range(2):  # a longer header moves what is mapped behind it by 8 bytes, which MKL's AVX2 products show
        shutil.copytree(model, tmp_path / f"model{n}")
        save_file(tensors, tmp_path / f"model{n}" / "model.safetensors", {"format": "pt" + 8 * n * " "})
        settings = ("--train", reviews, "--batch-rows", 1, "--epochs", 1)
        assert train(*settings, "--model", tmp_path / f"model{n}", "--set", "dropout=0.1", out=f"out{n}")[0] == 0
    assert weights(tmp_path / "out0").keys() == weights(tmp_path / "out1").keys()
    for name, weight in weights(tmp_path / "out0").items():
        assert torch.equal(weight, weights(tmp_path / "out1")[name]), name


def test_a_finished_training_is_not_begun_again(train, tmp_path, reviews):
    train("--train", reviews)
    before = results(tmp_path / "out")
    status, printed = train("--train", reviews, "--resume")
    assert (status, results(tmp_path / "out")) == (0, before)
    assert "model of epoch 3" in printed


@pytest.mark.parametrize("padded", [False, True])
def test_the_order_of_the_rows_depends_on_the_seed_and_the_epoch_and_loses_none(padded):
    rows = [data.Row(range(3 + i % 5), [i]) for i in range(50)]
    args = Namespace(seed=0, batch_rows=4, batch_tokens=16, micro_batches=3, padded=padded)
    plans = [data.plan_epoch(rows, epoch, args) for epoch in (0, 0, 1)]
    args.seed = 1
    plans.append(data.plan_epoch(rows, 0, args))
    order = [[row.labels[0] for step in plan for batch in step for row in batch] for plan in plans]
    assert order[0] == order[1] != order[2] != order[3] != order[0]
    assert all(sorted(each) == list(range(50)) for each in order)
    assert all(len(step) == 3 for step in plans[0][:-1])
    batches = [batch for step in plans[0] for batch in step]
    size = (lambda lengths: len(lengths) * max(lengths)) if padded else sum
    assert all(len(batch) <= 4 and size([len(row.ids) for row in batch]) <= 16 for batch in batches)
    assert data.split([data.Row(range(99), [0])] * 2, args) == [[data.Row(range(99), [0])]] * 2


# What it reads


def read(path, tmp_path, model, text="text", pair=None, label="label", words=False, skip_bad=False, max_length=16):
    tokenizer = DistilBertTokenizer.from_pretrained(model)
    return data.read_file(path, data.Columns(text, pair, label, words), tokenizer, max_length, skip_bad)


def test_the_first_token_of_a_word_has_its_label(tmp_path, model):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": ["today!", "nice"], "label": ["A", 7]}\n{"text": "is a", "label": "O O"}')
    lines, remarks = read(file, tmp_path, model, words=True)
    assert [line.labels for line in lines] == [[None, "A", None, "7", None], [None, "O", "O", None]]
    assert remarks == []
    assert [list(row.labels) for row in data.number_labels(lines, ["7", "A", "O"], file)] == [
        [-100, 1, -100, 0, -100],
        [-100, 2, 2, -100],
    ]


def test_labels_are_sorted_and_numbers_by_their_value():
    lines = [data.Line(1, [], [name], False) for name in ("10", "2", "b", "a", None, "2")]
    assert data.find_labels(lines) == ["a", "b", "2", "10"]


def test_csv_has_quotation_marks_and_pairs_and_tsv_has_neither(tmp_path, model):
    (tmp_path / "a.csv").write_text('﻿other,text,second,label\n,"a ""nice"",\nday",today,1\n\n')
    (tmp_path / "a.tsv").write_text('label\ttext\r\n1\tnot "sure\r\n')
    tokenizer = DistilBertTokenizer.from_pretrained(model)
    ((line,), _) = read(tmp_path / "a.csv", tmp_path, model, pair="second")
    assert list(line.ids) == tokenizer('a "nice",\nday', "today").input_ids
    ((line,), _) = read(tmp_path / "a.tsv", tmp_path, model)
    assert (line.number, list(line.ids)) == (2, tokenizer('not "sure').input_ids)


BAD_LINES = [
    ("a.jsonl", b'{"text": "nice", "label": 1}\n{"text"\n', "line 2: not JSON"),
    ("a.jsonl", b'[1]\n{"text": "nice", "label": 1}\n', "line 1: not a JSON object"),
    (
        "a.jsonl",
        b'{"text": "nice", "label": 1}\n\n{"txt": "nice", "label": 1}',
        "line 3: no 'text', only 'txt', 'label'",
    ),
    ("a.jsonl", b'{"text": "nice", "label": 1}\n{"text": 5, "label": 1}', "line 2: 'text' must be a text, got 5"),
    ("a.jsonl", b'{"text": "nice", "label": 1}\n{"text": "a", "label": null}', "line 2: the label must be"),
    ("a.jsonl", b'{"text": "nice", "label": 1}\n{"text": "\\ud800", "label": 1}', "line 2: "),
    ("a.tsv", b"text\tlabel\nnice\t1\nnice\n", "line 3: not 2 columns"),
    ("a.tsv", b"text\tlabel\nnice\t1\n \t1\n", "line 3: the text has no tokens"),
    ("a.tsv", b"text\tlabel\nnice\t1\nnice\t\n", "line 3: the label must be"),
    ("a.tsv", b"text\tlabel\nnice\t1\n\xffnice\t1\n", "line 3: "),
    ("a.tsv", b"text\tlabel\nnice\t1\nnice\t\xff\n", "line 3: the label must be"),
    ("a.csv", b'text,label\nnice,1\n"a"b,1\n', "line 3: "),
    ("a.csv", b'text,label\nnice,1\n"a,1\n', "line 3: unexpected end of data"),
]


@pytest.mark.parametrize(("name", "content", "error"), BAD_LINES)
def test_bad_lines_are_reported_by_number_or_left_out(tmp_path, model, name, content, error):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="1 bad lines: ") as refused:
        read(tmp_path / name, tmp_path, model)
    assert error in str(refused.value)
    assert "--skip-bad" in str(refused.value)
    lines, (remark,) = read(tmp_path / name, tmp_path, model, skip_bad=True)
    assert [line.labels for line in lines] == [["1"]]
    assert "1 bad lines left out" in remark
    assert error in remark


@pytest.mark.parametrize(
    ("name", "start", "end"), [("a.jsonl", '{"text": "', '", "label": 1}'), ("a.tsv", "", "\t1"), ("a.csv", '"', '",1')]
)
def test_a_line_of_more_than_4_mib_is_a_bad_line(tmp_path, model, name, start, end):
    header = [] if name == "a.jsonl" else ["text\tlabel" if name == "a.tsv" else "text,label"]
    lines = header + [f"{start}{text}{end}" for text in ("nice", "day " * 2**20, "day " * 2**21, "nice")]
    (tmp_path / name).write_text("\n".join(lines))
    with pytest.raises(ValueError, match="2 bad lines: ") as refused:
        read(tmp_path / name, tmp_path, model)
    numbers = [number for number, line in enumerate(lines, 1) if len(line) > 2**22]
    assert all(f"line {number}: the line has more than 4 MiB" in str(refused.value) for number in numbers)
    good, _ = read(tmp_path / name, tmp_path, model, skip_bad=True)
    assert [line.number for line in good] == [numbers[0] - 1, numbers[-1] + 1]


def test_a_row_over_many_lines_ends_the_reading_after_4_mib(tmp_path, model):
    (tmp_path / "a.csv").write_text('text,label\nnice,1\n"' + 'day\n","' * 1_000_000)
    with pytest.raises(ValueError, match=r"lines 3 to 599\d\d\d are one bad row: is a quotation mark not closed"):
        read(tmp_path / "a.csv", tmp_path, model, skip_bad=True)


def test_the_error_of_a_line_is_short(tmp_path, model):
    (tmp_path / "a.jsonl").write_text(json.dumps({"a" * 100_000: "nice"}))
    with pytest.raises(ValueError, match="no 'text', only 'aaa") as refused:
        read(tmp_path / "a.jsonl", tmp_path, model)
    assert len(str(refused.value)) < 1000


def test_words_and_labels_of_other_numbers_are_a_bad_line(tmp_path, model):
    (tmp_path / "a.jsonl").write_text('{"text": ["a", "day"], "label": ["O"]}')
    with pytest.raises(ValueError, match="line 1: 2 words need as many labels"):
        read(tmp_path / "a.jsonl", tmp_path, model, words=True)


def test_long_texts_are_cut_and_counted(tmp_path, model):
    write_reviews(tmp_path / "a.tsv", 9)
    lines, remarks = read(tmp_path / "a.tsv", tmp_path, model, max_length=5)
    n_cut = sum(line.cut for line in lines)
    assert 0 < n_cut < 9
    assert max(len(line.ids) for line in lines) == 5
    assert remarks == [f"{tmp_path / 'a.tsv'}: {n_cut} of 9 texts cut to 5 tokens"]


# What it refuses

BAD_FILES = [
    ("train.tsv", "", "empty: the first line must name the columns"),
    ("train.jsonl", "\n", "no rows"),
    ("train.tsv", "text\tlabel\n", "no rows"),
    ("train.tsv", "sentence\tlabel\nnice\t1\n", "no column 'text' among ['sentence', 'label']"),
    ("train.csv", '"text"s,label\nnice,1\n', "line 1: "),
    ("train.tsv", "text\ttext\tlabel\nnice\tnice\t1\n", "more than one column 'text'"),
    ("train.tsv", "text\tlabel\nnice\t1\nnot\t1\n", "all rows have the label 1"),
    (
        "train.csv",
        'text,label\nnice,1\n"not,0\nnice,1\n',
        "lines 3 to 4 are one bad row: is a quotation mark not closed?",
    ),
    ("train.txt", "nice", "must end in .jsonl, .csv or .tsv"),
    ("train.csv", "text,label\rnice,1\r", r"line 1: lines must end in \n or \r\n, not in \r alone"),
]


@pytest.mark.parametrize(("name", "content", "error"), BAD_FILES)
def test_a_bad_file_ends_in_one_line_and_leaves_nothing(train, tmp_path, name, content, error):
    (tmp_path / name).write_text(content, newline="")
    status, printed = train("--train", tmp_path / name, "--skip-bad")
    assert status == 2
    assert str(tmp_path / name) in printed
    assert error in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_label_that_only_the_evaluation_has_is_named_with_its_line(train, tmp_path, reviews):
    (tmp_path / "eval.tsv").write_text("text\tlabel\nnice\tgood\nnot\tawful\n")
    status, printed = train("--train", reviews, "--eval", tmp_path / "eval.tsv")
    assert status == 2
    assert "eval.tsv: line 3: no text of the training file, as far as it is not cut, has the label 'awful'" in printed
    assert "its labels are bad, good" in printed


BAD_ARGUMENTS = [
    (["--learning-rate", "nan"], "--learning-rate: must be a number of at least 0, got 'nan'"),
    (["--epochs", "0"], "--epochs: must be an integer of at least 1, got '0'"),
    (["--set", "dropout"], "must be NAME=VALUE"),
    (["--config", "a.json"], "give either --model or --config"),
    (["--patience", "1"], "--patience needs --eval"),
    (["--fsdp"], "--fsdp needs torchrun"),
    pytest.param(
        ["--device", "cuda"],
        "--device cuda: torch finds no GPU",
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
    ),
    (["--average", "1"], "--average: must be a number of at least 0 and at most 0.9999"),
]


@pytest.mark.parametrize(("arguments", "error"), BAD_ARGUMENTS)
def test_a_bad_argument_is_refused(train, reviews, capsys, arguments, error):
    with pytest.raises(SystemExit, match="2"):
        train("--train", reviews, *arguments)
    assert error in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["no_such_field=1", "n_heads=5", "dropout=2"])
def test_a_config_that_cannot_be_is_refused(train, reviews, setting):
    status, printed = train("--train", reviews, "--set", setting)
    assert status == 2
    assert setting.partition("=")[0] in printed


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("[" * 100_000, "not a config (maximum recursion depth exceeded"),
        ('{"dim": 1000000, "n_heads": 1, "hidden_dim": 1000000}', "weights, 1,000,000,000 are the most"),
        (
            '{"dim": 100000, "n_heads": 1, "max_position_embeddings": 1000000, "sinusoidal_pos_embds": true}',
            "weights, 1,000,000,000 are the most",
        ),
    ],
)
def test_a_config_file_that_asks_for_too_much_ends_in_one_line(tmp_path, capsys, reviews, content, error):
    (tmp_path / "sizes.json").write_text(content)
    files = {"--config": tmp_path / "sizes.json", "--tokenizer": DEMO, "--train": reviews, "--out": tmp_path / "out"}
    status = finetune.main(["sequence", *(str(part) for item in files.items() for part in item)])
    printed = capsys.readouterr().err
    assert status == 2
    assert error in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_more_labels_than_an_evaluation_counts_are_refused(train, tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "".join(f"nice\t{i}\n" for i in range(1001)))
    arguments = ("--train", tmp_path / "a.tsv", "--eval", tmp_path / "a.tsv")
    status, printed = train(*arguments)
    assert status == 2
    assert "1001 labels, but an evaluation counts the confusions of 1000 at most: train without --eval" in printed
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_is_refused_without_resume_and_with_it_too_if_it_has_no_checkpoint(
    train, tmp_path, reviews
):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    for arguments, error in (([], "not empty"), (["--resume"], "needs checkpoint.safetensors")):
        status, printed = train("--train", reviews, *arguments)
        assert status == 2
        assert error in printed
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_a_resume_with_other_arguments_or_data_is_refused_by_name(train, tmp_path, reviews):
    train("--train", reviews)
    before = results(tmp_path / "out")
    other = write_reviews(tmp_path / "other.jsonl", seed=5)
    renamed = tmp_path / "renamed.jsonl"  # the same classes, under other names
    renamed.write_text(reviews.read_text().replace(': "bad"', ': "awful"'))
    for arguments, name in (
        (["--train", reviews, "--learning-rate", 1e-3], "--learning-rate is 0.001, but was 5e-05"),
        (["--train", reviews, "--micro-batches", 2], "--micro-batches is 2, but was 1"),
        (["--train", other], "the hash of the rows of --train"),
        (["--train", renamed], "the hash of the config and its labels"),
        (["--train", reviews, "--eval", reviews], "the hash of the rows of --eval"),
    ):
        status, printed = train(*arguments, "--resume")
        assert status == 2
        assert name in printed
    assert results(tmp_path / "out") == before


def test_a_damaged_checkpoint_is_refused(train, tmp_path, reviews):
    train("--train", reviews)
    checkpoint = tmp_path / "out" / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    status, printed = train("--train", reviews, "--resume")
    assert status == 2
    assert "not a checkpoint of finetune.py" in printed


PLACE = {"epoch": 1, "best": 0.5}


@pytest.mark.parametrize(
    "about",
    [
        {"place": PLACE},
        {"place": PLACE, "same": {}, "machine": None},
        {"place": PLACE, "same": [], "machine": ""},
        {"place": {"step": 0.5}, "same": {}, "machine": ""},
        {"place": {"best": "1"}, "same": {}, "machine": ""},
        {"place": {"no_such_field": 1}, "same": {}, "machine": ""},
        {"same": {}, "machine": ""},
        [],
        None,
    ],
)
def test_a_checkpoint_that_says_something_else_of_itself_is_refused(train, tmp_path, reviews, about):
    (tmp_path / "out").mkdir()
    text = "[" * 100_000 if about is None else json.dumps(about)
    save_file({"a": torch.zeros(1)}, tmp_path / "out" / "checkpoint.safetensors", {"about": text})
    status, printed = train("--train", reviews, "--resume")
    assert status == 2
    assert "not a checkpoint of finetune.py" in printed
    assert printed.count("\n") == 1


def test_a_metrics_file_that_lost_lines_is_refused(train, tmp_path, reviews):
    train("--train", reviews)
    (tmp_path / "out" / "metrics.jsonl").unlink()
    status, printed = train("--train", reviews, "--resume")
    assert status == 2
    assert "metrics.jsonl: shorter than it was" in printed


def test_two_trainings_into_one_folder_are_refused(train, tmp_path, reviews):
    fcntl = pytest.importorskip("fcntl")
    train("--train", reviews)
    with (tmp_path / "out" / "metrics.jsonl").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        status, printed = train("--train", reviews, "--resume")
    assert status == 2
    assert "another process is training into it" in printed


def test_a_loss_that_is_no_number_stops_with_its_step_and_keeps_the_checkpoint(train, tmp_path, reviews):
    settings = ("--train", reviews, "--batch-rows", 4, "--checkpoint-every", 1, "--warmup", 0, "--clip", "inf")
    status, printed = train(*settings, "--learning-rate", 1e30)
    assert status == 1
    assert "step 2: the loss is nan" in printed or "step 1: not finite" in printed
    tensors, about = module("finetune_state").read_checkpoint(tmp_path / "out" / "checkpoint.safetensors")
    assert about["place"]["n_steps"] <= 1
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_weights_that_are_no_numbers_are_not_saved_as_the_result(train, tmp_path, reviews):
    status, printed = train("--train", reviews, "--batch-rows", 999, "--warmup", 0, "--learning-rate", 1e38)
    assert status == 1
    assert "step 1: not finite" in printed
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_full_disk_keeps_the_checkpoint_before_and_a_resume_goes_on(train, tmp_path, reviews):
    settings = ("--train", reviews, "--batch-rows", 8)
    train(*settings)
    train(*settings, out="whole")
    whole = results(tmp_path / "whole")
    assert results(tmp_path / "out") == whole

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * size, hard))  # room for the weights, not for the moments too
    try:
        status, printed = train(*settings, out="full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 2
    assert "cannot be written" in printed
    _, about = module("finetune_state").read_checkpoint(tmp_path / "full" / "checkpoint.safetensors")
    assert about["place"]["n_steps"] == 0
    assert not list((tmp_path / "full").glob(".*"))
    assert train(*settings, "--resume", out="full")[0] == 0
    assert results(tmp_path / "full") == whole


# Several processes


def run_module(*command):
    """Run a module of Python, with the repository as the current folder."""
    arguments = list(map(str, [sys.executable, "-m", *command]))
    ran = subprocess.run(arguments, capture_output=True, text=True, cwd=SCRIPTS.parent, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def weights(folder):
    return DistilBertForSequenceClassification.from_pretrained(folder).state_dict()


def test_any_number_of_processes_trains_the_same_model(train, tmp_path, model, reviews):
    settings = ["--train", reviews, "--eval", reviews, "--epochs", 2, "--batch-rows", 3, "--checkpoint-every", 1]
    run_module("tests.forked_training", tmp_path, "sequence", "--model", model, "--micro-batches", 2, *settings)

    whole = gradients_of_a_step(rows_in_a_batch=11)  # all rows in one batch, in this process
    for world in WORLDS:  # of 6 batches: with 4 processes two of them have one batch less
        for rank in range(world):
            for gradient, expected in zip(torch.load(tmp_path / f"{world}-{rank}.pt"), whole, strict=True):
                torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)

    train(*settings, "--micro-batches", 2, "--threads", 1)  # 7 batches an epoch: the last step has one
    assert results(tmp_path / "two") == results(tmp_path / "mixed") == results(tmp_path / "out")
    train(*settings, "--micro-batches", 4, "--threads", 1, out="four-alone")
    train(*settings, "--micro-batches", 2, "--threads", 1, "--padded", out="padded")
    for one, other in (("four", "four-alone"), ("fsdp", "padded")):  # the sums have another order
        found, expected = weights(tmp_path / one), weights(tmp_path / other)
        for name in [name for name in found if not name.endswith("k_lin.bias")]:  # its gradient is 0 but for rounding
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)


def test_torchrun_gives_the_bytes_of_one_process(train, tmp_path, model, reviews):
    settings = ["--model", model, "--train", reviews, "--epochs", 1, "--batch-rows", 4, "--micro-batches", 2]
    train(*settings[2:], "--threads", 1)
    script = [SCRIPTS / "finetune.py", "sequence", *settings, "--threads", 1, "--out", tmp_path / "two"]
    run_module("torch.distributed.run", "--standalone", "--nproc-per-node", 2, *script)
    assert results(tmp_path / "two") == results(tmp_path / "out")
