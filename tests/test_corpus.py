"""scripts/classify_corpus.py and embed_corpus.py: nothing is lost, doubled or mixed, whatever happens to the run."""

import csv
import gzip
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from minibert import DistilBertForSequenceClassification
from minibert.pipeline import Embedder, TextClassifier

from .machine import needs
from .pipelines import random_texts, saved

resource = pytest.importorskip("resource", reason="the tests limit sizes of files and kill processes as on Linux")
SCRIPTS = Path(__file__).parents[1] / "scripts"
LABELS = {0: "bad", 1: "good", 2: "neither"}


@pytest.fixture(autouse=True)
def environment(monkeypatch, torch_as_before):
    """The scripts' folder on the path, and no place in a world; afterwards the log as before."""
    monkeypatch.syspath_prepend(SCRIPTS)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    logger = logging.getLogger("minibert")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "classifier"
    return saved(folder, "DistilBertForSequenceClassification", id2label=LABELS)


@pytest.fixture
def inputs(tmp_path):
    """Three files of JSONL with 50, 1 and 31 texts."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    for i, count in enumerate((50, 1, 31)):
        write_jsonl(folder / f"{i}.jsonl", random_texts(count, seed=i), i)
    return folder


def write_jsonl(path, texts, prefix="x"):
    rows = [{"id": f"{prefix}-{i}", "text": text} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run(checkpoint, *arguments, script="classify_corpus"):
    """Run a script in this process, with one thread, and return its exit status."""
    module = importlib.import_module(script)
    sys.argv = [f"{script}.py", "--model", str(checkpoint), "--threads", "1", *map(str, arguments)]
    return module.main()


@pytest.fixture(autouse=True)
def arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)


def command(checkpoint, *arguments, before=()):
    """The command line that classifies in a process of its own."""
    script = [*before, SCRIPTS / "classify_corpus.py", "--model", checkpoint, "--threads", 1]
    return [sys.executable, *map(str, (*script, *arguments))]


def contents(folder):
    """Each file of a folder, hidden ones too, by name."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def records(folder):
    """The results in the order of the files' names."""
    files = sorted(path for path in Path(folder).iterdir() if path.name[0] == "0" and path.suffix == ".jsonl")
    return [json.loads(line) for path in files for line in path.read_text(encoding="utf-8").splitlines()]


def test_results_are_those_of_the_pipeline_in_the_order_of_the_inputs(checkpoint, inputs, tmp_path):
    assert run(checkpoint, inputs / "*.jsonl", "-o", tmp_path / "out", "--id-column", "id", "--scores") == 0
    rows = [json.loads(line) for path in sorted(inputs.iterdir()) for line in path.read_text().splitlines()]
    found = records(tmp_path / "out")
    assert [record["id"] for record in found] == [row["id"] for row in rows]
    assert [record["line"] for record in found] == [*range(1, 51), 1, *range(1, 32)]
    expected = list(TextClassifier(checkpoint)([row["text"] for row in rows]))
    assert [record["label"] for record in found] == [result.label for result in expected]
    for record, result in zip(found, expected, strict=True):
        assert record["score"] == pytest.approx(result.score, rel=1e-5)
        assert list(record["scores"]) == list(LABELS.values())
        assert record["scores"] == pytest.approx(result.scores, rel=1e-5)


@needs("batch_invariant")
def test_bytes_do_not_depend_on_batches_processes_or_resumed_runs(checkpoint, inputs, tmp_path, monkeypatch):
    options = (inputs / "*.jsonl", "--id-column", "id", "--lines-per-shard", "20", "-o")
    assert run(checkpoint, *options, tmp_path / "one") == 0
    expected = contents(tmp_path / "one")
    names = ["000000-000000", "000000-000001", "000000-000002", "000001-000000", "000002-000000", "000002-000001"]
    assert sorted(expected) == [*(f"{name}.jsonl" for name in names), "manifest.json"]
    for tokens in (1, 50, 10_000):
        assert run(checkpoint, *options, tmp_path / f"batch {tokens}", "--batch-tokens", tokens) == 0
        assert contents(tmp_path / f"batch {tokens}") == expected
    monkeypatch.setenv("WORLD_SIZE", "3")
    seen = set()
    for rank in range(3):  # one after another, as in a job array
        monkeypatch.setenv("RANK", str(rank))
        assert run(checkpoint, *options, tmp_path / "ranks") == 0
        new = contents(tmp_path / "ranks").keys() - seen - {"manifest.json"}
        assert len(new) == 2
        seen |= new
    assert contents(tmp_path / "ranks") == expected
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    untouched = (tmp_path / "ranks" / f"{names[0]}.jsonl").stat().st_mtime_ns
    (tmp_path / "ranks" / f"{names[1]}.jsonl").unlink()
    assert run(checkpoint, *options, tmp_path / "ranks") == 0
    assert contents(tmp_path / "ranks") == expected
    assert (tmp_path / "ranks" / f"{names[0]}.jsonl").stat().st_mtime_ns == untouched


@needs("batch_invariant")
@pytest.mark.parametrize(("start_with", "n"), [("--workers", 3), ("torchrun", 2)])
def test_bytes_are_those_of_one_process(checkpoint, inputs, tmp_path, start_with, n):
    options = [inputs / "*.jsonl", "--lines-per-shard", "20", "-o"]
    assert run(checkpoint, *options, tmp_path / "one") == 0
    if start_with == "torchrun":
        torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(n), "--master-port", "0"]
        line = command(checkpoint, *options, tmp_path / "many", before=torchrun)
    else:
        line = command(checkpoint, *options, tmp_path / "many", "--workers", n)
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"in process {rank}:" in done.stderr for rank in range(n))
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


@needs("batch_invariant")
@pytest.mark.parametrize("how", ["every-step", "random-times"])
def test_killed_runs_leave_complete_files_and_the_next_run_does_the_rest(checkpoint, inputs, tmp_path, how):
    folders = run_children(how, inputs / "0.jsonl", checkpoint, tmp_path)
    assert len(folders) > 7
    for folder in folders:  # each was run again after the last kill
        assert contents(folder) == contents(tmp_path / "out" / "warm"), folder


@needs("batch_invariant")
def test_two_runs_at_once_are_harmless_or_refused(checkpoint, inputs, tmp_path):
    run_children("together", inputs / "0.jsonl", checkpoint, tmp_path)
    for attempt in range(3):  # equal runs
        assert contents(tmp_path / "out" / str(attempt)) == contents(tmp_path / "out" / "warm")
    for attempt in range(3, 6):  # one of them with --scores: its results and those of the other are never mixed
        folder = tmp_path / "out" / str(attempt)
        with_scores = json.loads((folder / "manifest.json").read_text())["arguments"]["scores"]
        found = records(folder)
        assert len(found) == 50
        assert {"scores" in record for record in found} == {with_scores}
        assert not [name for name in contents(folder) if name.endswith(".tmp")]


def run_children(how, source, checkpoint, tmp_path):
    """Run corpus_runs.py, and return the folders that it leaves."""
    out = tmp_path / "out"
    out.mkdir()
    script = Path(__file__).with_name("corpus_runs.py")
    done = subprocess.run(
        [sys.executable, script, how, source, checkpoint, out],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    if how == "together":
        statuses = [sorted(line.split()) for line in done.stdout.splitlines()]
        assert statuses == [["0", "0"]] * 3 + [["0", "2"]] * 3
    return sorted(out.iterdir())


@needs("batch_invariant")
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the workers are found in /proc")
@pytest.mark.parametrize("victim", ["worker", "parent"])
def test_a_killed_worker_or_parent_ends_the_run_and_the_next_one_does_the_rest(checkpoint, tmp_path, victim):
    write_jsonl(tmp_path / "long.jsonl", random_texts(4000))
    options = [tmp_path / "long.jsonl", "--lines-per-shard", "100", "-o", tmp_path / "out"]
    slowly = command(checkpoint, *options, "--workers", "2", "--batch-tokens", "1")
    with subprocess.Popen(slowly, stderr=subprocess.PIPE, text=True) as parent:
        while not list(tmp_path.glob("out/0*")) and parent.poll() is None:
            time.sleep(0.01)
        workers = [int(pid) for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
        workers = [pid for pid in workers if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(workers) == 2
        os.kill(workers[1] if victim == "worker" else parent.pid, signal.SIGKILL)
        errors = parent.stderr.read()  # until the last process that holds the pipe has ended
    assert parent.returncode == (2 if victim == "worker" else -signal.SIGKILL)
    assert ("error: a worker was killed" in errors) == (victim == "worker")
    complete = len(list(tmp_path.glob("out/0*")))
    assert 0 < complete < 40
    assert run(checkpoint, *options) == 0
    assert run(checkpoint, *options[:-1], tmp_path / "alone") == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


BAD_LINES = [
    (b"", "the line is empty"),
    (b"   ", "the line is empty"),
    (b"{", "not JSON: "),
    (b"[1]", "expected a JSON object, got list"),
    (b'{"id": 1}', "no 'text' in ['id']"),
    (b'{"text": "a"}', "no 'id' in ['text']"),
    (b'{"id": [], "text": "a"}', "'id' is neither a string nor an integer"),
    (b'{"id": 1, "text": null}', "'text' is not a string"),
    (b'{"id": 1, "text": " "}', "the text is empty"),
    (b'{"id": 1, "text": "\\u0000"}', "the text has no tokens"),
    (b'{"id": 1, "text": "\\ud800"}', "lone surrogate"),
    (b'{"id": 1, "text": "' + b"day " * 60 + b'"}', "it has 62 tokens, more than 48"),
    (b'{"id": 1, "text": "\xff"}', "'utf-8' codec can't decode"),
    (b"[" * 100_000, "not JSON: "),
    (b'{"id": 1, "text": "' + b"day " * 2**20 + b'"}', "the line has more than 4 MiB"),
]


def test_each_bad_line_has_its_line_and_harms_no_other(checkpoint, tmp_path):
    good = b'{"id": "a", "text": "a nice day"}'
    lines = [line for bad, _ in BAD_LINES for line in (bad, good)]
    (tmp_path / "bad.jsonl").write_bytes(b"\xef\xbb\xbf" + good + b"\r\n" + b"\n".join(lines))  # no newline at the end
    assert run(checkpoint, tmp_path / "bad.jsonl", "-o", tmp_path / "out", "--id-column", "id") == 0
    first, *found = records(tmp_path / "out")
    assert [record["line"] for record in found] == list(range(2, 2 + len(lines)))
    for (_, message), bad, after in zip(BAD_LINES, found[::2], found[1::2], strict=True):
        assert message in bad["error"]
        assert bad.keys() == {"line", "id", "error"}
        assert after == first | {"line": after["line"]}
    assert all(len(record.get("error", "")) < 600 for record in found)


def test_texts_that_are_cut_are_marked(checkpoint, tmp_path, capfd):
    texts = ["day " * 46, "day " * 47, "a day"]  # 48, 49 and 4 tokens
    (tmp_path / "long.txt").write_text("\n".join(texts))
    assert run(checkpoint, tmp_path / "long.txt", "-o", tmp_path / "out", "--truncate") == 0
    assert [record.get("truncated") for record in records(tmp_path / "out")] == [None, True, None]
    assert "cut from" not in capfd.readouterr().err


CSV = 'id,text\r\n7,a nice day\r\n8,"a nice\r\nday, ""not"" nice"\r\n9\r\n\r\n10,"a" day\r\n11,東京\r\n12,"open\r\n'


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_csv(checkpoint, tmp_path, suffix):
    data = CSV.encode()
    (tmp_path / f"a.{suffix}").write_bytes(gzip.compress(data) if suffix == "csv.gz" else data)
    assert run(checkpoint, tmp_path / f"a.{suffix}", "-o", tmp_path / "out", "--id-column", "id") == 0
    found = records(tmp_path / "out")
    texts = [row["text"] for row in csv.DictReader(CSV.split("9\r\n")[0].splitlines(keepends=True))] + ["東京"]
    expected = [result.label for result in TextClassifier(checkpoint)(texts)]
    assert [record["label"] for record in found if "label" in record] == expected
    assert [record["id"] for record in found] == ["7", "8", None, None, None, "11", None]
    errors = [record.get("error", "")[:16] for record in found]
    assert errors == ["", "", "1 fields, but th", "the line is empt", "not a row of CSV", "", "not a row of CSV"]


def test_a_csv_line_that_is_too_long_takes_no_other_row(checkpoint, tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n1,"' + "day " * 2**20 + '"\n2,a nice day\n3,"a, b"\n')
    assert run(checkpoint, tmp_path / "a.csv", "-o", tmp_path / "out", "--id-column", "id") == 0
    bad, *good = records(tmp_path / "out")
    assert bad == {"line": 1, "id": None, "error": "not a row of CSV (the line has more than 4 MiB)"}
    assert [record["id"] for record in good if "label" in record] == ["2", "3"]


def test_a_csv_row_over_many_lines_has_at_most_4_mib(checkpoint, tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n1,"' + 'day\n","' * 600_000 + 'day"\n2,a nice day\n')
    assert run(checkpoint, tmp_path / "a.csv", "-o", tmp_path / "out", "--id-column", "id") == 0
    first, *others, last = records(tmp_path / "out")
    assert first["error"] == "not a row of CSV (the row has more than 4 MiB: is a quotation mark not closed?)"
    assert others
    assert all("error" in record for record in others)
    assert last["id"] == "2"
    assert "label" in last


def test_a_text_with_an_error_is_not_kept(checkpoint):
    corpus, inputs = importlib.import_module("corpus"), importlib.import_module("corpus_inputs")
    lines = [inputs.Line(1, text="day " * 100), inputs.Line(2, text="a nice day")]
    (bad, nothing), (_, result) = corpus.run_lines(TextClassifier(checkpoint), lines, Counter())
    assert bad.text is nothing is None
    assert "it has 102 tokens" in bad.error
    assert result.label in LABELS.values()


@pytest.mark.parametrize("script", ["classify_corpus", "embed_corpus"])
def test_a_run_of_errors_alone_has_status_2(checkpoint, inputs, tmp_path, capfd, script):
    assert run(checkpoint, inputs / "0.jsonl", "-o", tmp_path / "out", "--column", "body", script=script) == 2
    error = capfd.readouterr().err
    assert "000000-000000 in process 0: every line has an error: is --column right?" in error
    assert "done: shards 1, lines 50, errors 50" in error
    assert len(records(tmp_path / "out")) == 50


def test_a_pattern_finds_links_and_their_files(inputs, tmp_path):
    find_inputs = importlib.import_module("corpus_inputs").find_inputs
    (tmp_path / "links").mkdir()
    for path in inputs.iterdir():
        os.utime(path, (1, 1))
        (tmp_path / "links" / path.name).symlink_to(path)
    files, links = (find_inputs([f"{folder}/*.jsonl"], None) for folder in (inputs, tmp_path / "links"))
    assert [each | {"address": ""} for each in links] == [each | {"address": ""} for each in files]
    assert [Path(each["address"]).name for each in links] == ["0.jsonl", "1.jsonl", "2.jsonl"]


def test_a_folder_without_hard_links_is_written_once(checkpoint, inputs, tmp_path, monkeypatch):
    def no_link(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)  # as on exFAT
    assert run(checkpoint, inputs / "0.jsonl", "-o", tmp_path / "out") == 0
    corpus = importlib.import_module("corpus")
    before = contents(tmp_path / "out")
    with corpus.Folder(str(tmp_path / "out")).new_file("manifest.json", replace=False) as file:
        file.write(b"other")
    assert contents(tmp_path / "out") == before


def test_tsv_has_no_quotes(checkpoint, tmp_path):
    (tmp_path / "a.tsv").write_text('label\ttext\n1\t"a nice day\n0\tnot "nice"\n')
    assert run(checkpoint, tmp_path / "a.tsv", "-o", tmp_path / "out") == 0
    expected = [result.label for result in TextClassifier(checkpoint)(['"a nice day', 'not "nice"'])]
    assert [record["label"] for record in records(tmp_path / "out")] == expected


def test_parquet(checkpoint, tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="the extra [parquet] is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = [*random_texts(3000), None, ""]
    table = pyarrow.table({"other": [0.5] * len(texts), "id": list(range(len(texts))), "text": texts})
    parquet.write_table(table, tmp_path / "a.parquet")
    write_jsonl(tmp_path / "a.jsonl", texts[:-2])
    out = tmp_path / "out"
    assert run(checkpoint, tmp_path / "a.parquet", "-o", out, "--id-column", "id", "--lines-per-shard", 1500) == 0
    assert run(checkpoint, tmp_path / "a.jsonl", "-o", tmp_path / "jsonl") == 0
    *found, null, empty = records(out)
    assert [record.pop("id") for record in found] == list(range(3000))
    assert [record["label"] for record in found] == [record["label"] for record in records(tmp_path / "jsonl")]
    assert null == {"line": 3001, "id": 3000, "error": "'text' is not a string"}
    assert empty == {"line": 3002, "id": 3001, "error": "the text is empty"}
    assert run(checkpoint, tmp_path / "a.parquet", "-o", tmp_path / "wrong", "--column", "txt") == 2


def test_a_file_for_an_address_leaves_nothing_on_this_disk_if_the_run_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    memory = fsspec.filesystem("memory")
    try:
        with importlib.import_module("corpus").Folder("memory://results").new_file("a.jsonl") as file:
            file.write(b"a")
            assert not list(tmp_path.iterdir())  # a kill comes here
        assert memory.cat_file("/results/a.jsonl") == b"a"
        assert memory.ls("/results", detail=False) == ["/results/a.jsonl"]
        assert not list(tmp_path.iterdir())
    finally:
        memory.store.clear()


@needs("batch_invariant")
def test_addresses_of_fsspec_are_read_and_written(checkpoint, inputs, tmp_path, capfd):
    memory = fsspec.filesystem("memory")
    for path in inputs.iterdir():
        memory.pipe(f"/corpus/{path.name}", path.read_bytes())
    options = ("-o", "memory://results", "--id-column", "id", "--lines-per-shard", "20")
    try:
        for _ in range(2):
            assert run(checkpoint, "memory://corpus/*.jsonl", *options) == 0
        assert "nothing was missing" in capfd.readouterr().err
        assert run(checkpoint, inputs / "*.jsonl", *options[:1], tmp_path / "out", *options[2:]) == 0
        local = contents(tmp_path / "out")
        remote = {Path(path).name: memory.cat_file(path) for path in memory.find("/results")}
        assert remote.keys() == local.keys()
        assert {n: data for n, data in remote.items() if n[0] == "0"} == {n: local[n] for n in local if n[0] == "0"}
        memory.pipe("/corpus/1.jsonl", b"")
        assert run(checkpoint, "memory://corpus/*.jsonl", *options) == 2
        assert "inputs.000001.bytes was" in capfd.readouterr().err
    finally:
        memory.store.clear()


@needs("batch_invariant")
def test_vectors(checkpoint, inputs, tmp_path):
    texts = random_texts(30)
    texts[7] = ""
    write_jsonl(tmp_path / "a.jsonl", texts)
    (tmp_path / "empty.txt").write_text("")
    options = (tmp_path / "a.jsonl", tmp_path / "empty.txt", "-o")
    assert run(checkpoint, *options, tmp_path / "out", script="embed_corpus") == 0
    vectors = np.load(tmp_path / "out" / "000000-000000.npy", mmap_mode="r")
    assert vectors.dtype == np.float32
    assert vectors.shape == (30, 32)
    good = [text for text in texts if text]
    assert np.array_equal(np.delete(vectors, 7, 0), torch.stack(list(Embedder(checkpoint)(good))).numpy())
    assert np.isnan(vectors[7]).all()
    assert [record.get("error") for record in records(tmp_path / "out")] == [
        "the text is empty" if i == 7 else None for i in range(30)
    ]
    assert np.load(tmp_path / "out" / "000001-000000.npy").shape == (0, 32)
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "000000-000000.npy").unlink()  # as if the run had been killed between its two files
    assert run(checkpoint, *options, tmp_path / "out", script="embed_corpus") == 0
    assert contents(tmp_path / "out") == before
    assert run(checkpoint, *options, tmp_path / "out", "--pooling", "cls", script="embed_corpus") == 2


def test_a_manifest_that_differs_is_refused_by_the_name_of_what_differs(checkpoint, inputs, tmp_path, capfd):
    out, source = tmp_path / "out", tmp_path / "a.jsonl"
    write_jsonl(source, ["a nice day"])
    assert run(checkpoint, source, "-o", out) == 0
    before = contents(out)
    capfd.readouterr()
    model = DistilBertForSequenceClassification.from_pretrained(checkpoint)
    other = saved(tmp_path / "other", "DistilBertForSequenceClassification", id2label=LABELS)
    with torch.no_grad():
        model.classifier.bias[0].add_(1e-3)
    model.save_pretrained(other)
    renamed = saved(tmp_path / "renamed", "DistilBertForSequenceClassification", id2label=LABELS | {0: "awful"})
    cased = saved(tmp_path / "cased", "DistilBertForSequenceClassification", id2label=LABELS)
    settings = json.loads((cased / "tokenizer_config.json").read_text())
    (cased / "tokenizer_config.json").write_text(json.dumps(settings | {"do_lower_case": False}))
    cases = [
        (other, [source], "weights was"),
        (renamed, [source], "config was"),
        (cased, [source], "tokenizer was"),
        (checkpoint, [source, "--column", "id"], "arguments.column was 'text', now 'id'"),
        (checkpoint, [source, "--id-column", "id"], "arguments.id_column was None, now 'id'"),
        (checkpoint, [source, "--truncate"], "arguments.truncate was False, now True"),
        (checkpoint, [source, "--lines-per-shard", 5], "arguments.lines_per_shard was None, now 5"),
        (checkpoint, [source, "--scores"], "arguments.scores was False, now True"),
        (checkpoint, [source, inputs / "0.jsonl"], "inputs.000001 was None"),
        (checkpoint, [inputs / "0.jsonl"], "inputs.000000.address was"),
    ]
    for model_folder, options, message in cases:
        assert run(model_folder, *options, "-o", out) == 2
        error = capfd.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    manifest = json.loads(before["manifest.json"])
    for name in ("minibert", "torch", "kernels", "cpu", "probe", "unicode"):
        (out / "manifest.json").write_text(json.dumps(manifest | {name: "another"}))
        assert run(checkpoint, source, "-o", out) == 2
        assert f"{name} was 'another', now" in capfd.readouterr().err
    (out / "manifest.json").write_bytes(before["manifest.json"])
    write_jsonl(source, ["a rice day"])  # as long as before
    os.utime(source, (1, 1))
    assert run(checkpoint, source, "-o", out) == 2
    assert "inputs.000000.changed was" in capfd.readouterr().err
    assert contents(out) == before
    (out / "manifest.json").unlink()
    assert run(checkpoint, source, "-o", out) == 2
    assert f"{out}: has 000000-000000.jsonl, but no manifest.json" in capfd.readouterr().err


def test_bad_inputs_are_errors_on_one_line(checkpoint, inputs, tmp_path, capfd, monkeypatch):
    (tmp_path / "a.doc").write_text("a nice day\n")
    (tmp_path / "a.txt").write_text("a nice day\n")
    archive = tmp_path / "a.jsonl.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in inputs.iterdir():
            file.write(path, path.name)
    cases = [
        (["nothing.jsonl"], "nothing.jsonl"),
        (["nothing*.jsonl"], "nothing*.jsonl: no file matches"),
        ([inputs], f"{inputs}: not a file"),
        ([tmp_path / "a.doc"], "a.doc: the name does not tell the format. Give --format"),
        ([tmp_path / "a.txt", "--id-column", "id"], "--id-column: plain text has no columns"),
        ([tmp_path / "a.txt", "--device", "nonsense"], "nonsense"),
        ([tmp_path / "a.txt", "--model", tmp_path], "config.json"),
        (["unknown://a.txt"], "Protocol not known: unknown"),
        ([archive], f"{archive}: a zip may hold several files. Name one: zip://NAME::"),
        ([archive, "--format", "jsonl"], "Name one: zip://NAME::"),
        ([f"zip://*.jsonl::{archive}"], "a chain of addresses takes no pattern"),
    ]
    for i, (options, message) in enumerate(cases):
        assert run(checkpoint, "-o", tmp_path / f"out{i}", *options) == 2
        error = capfd.readouterr().err
        assert message in error
        assert error.startswith("classify_corpus.py: error: ")
        assert error.count("\n") == 1
    for variables, message in [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK counts from 0 to WORLD_SIZE - 1"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK counts from 0 to WORLD_SIZE - 1"),
        ({"RANK": "1"}, "give both RANK and WORLD_SIZE, or neither"),
        ({"WORLD_SIZE": "2"}, "give both RANK and WORLD_SIZE, or neither"),
    ]:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            assert run(checkpoint, tmp_path / "a.txt", "-o", tmp_path / "out") == 2
        assert message in capfd.readouterr().err
    assert run(checkpoint, f"zip://2.jsonl::{archive}", "-o", tmp_path / "zip") == 0
    assert len(records(tmp_path / "zip")) == 31
    with pytest.raises(SystemExit, match="2"):
        run(checkpoint, tmp_path / "a.txt", "-o", tmp_path / "out", "--workers", "0")
    assert "'0' is not a number from 1 on" in capfd.readouterr().err


def test_an_input_that_cannot_be_read_to_its_end_stops_no_other(checkpoint, inputs, tmp_path, capfd):
    whole = gzip.compress((inputs / "0.jsonl").read_bytes())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.csv").write_text("id,body\n1,a nice day\n")
    out = tmp_path / "out"
    assert run(checkpoint, tmp_path / "a.jsonl.gz", tmp_path / "b.csv", inputs / "2.jsonl", "-o", out) == 2
    assert sorted(contents(out)) == ["000002-000000.jsonl", "manifest.json"]
    assert len(records(out)) == 31
    error = capfd.readouterr().err
    assert "a.jsonl.gz: after row" in error
    assert "b.csv: after row 0: no column 'text' in ['id', 'body']" in error
    assert "done: unreadable inputs 2, shards 1, lines 31" in error


def test_a_full_disk_is_an_error_and_leaves_nothing_half_written(checkpoint, inputs, tmp_path, capfd):
    out = tmp_path / "out"
    options = (inputs / "*.jsonl", "-o", out, "--lines-per-shard", "20", "--scores")
    (tmp_path / "few.txt").write_text("a day\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))  # bytes: the manifest fits, a shard does not
    try:
        assert run(checkpoint, *options) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "000000-000000.jsonl: cannot be written (File too large)" in capfd.readouterr().err
    assert list(contents(out)) == ["manifest.json"]
    assert run(checkpoint, *options) == 0
    assert len(records(out)) == 82


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_an_error(checkpoint, inputs, tmp_path, capfd):
    (tmp_path / "out").mkdir(mode=0o500)
    assert run(checkpoint, inputs / "0.jsonl", "-o", tmp_path / "out") == 2
    assert "manifest.json: cannot be written (Permission denied)" in capfd.readouterr().err


def test_a_model_that_gives_no_number_is_an_error_and_no_result(checkpoint, inputs, tmp_path, capfd):
    model = DistilBertForSequenceClassification.from_pretrained(checkpoint)
    with torch.no_grad():
        model.classifier.bias.fill_(torch.nan)
    broken = saved(tmp_path / "broken", "DistilBertForSequenceClassification", id2label=LABELS)
    model.save_pretrained(broken)
    assert run(broken, inputs / "0.jsonl", "-o", tmp_path / "out") == 2
    assert (
        "error: the model's result is not a number: {'line': 1, 'label': 'bad', 'score': nan}" in capfd.readouterr().err
    )
    assert list(contents(tmp_path / "out")) == ["manifest.json"]
    with torch.no_grad():
        model.distilbert.transformer.layer[-1].output_layer_norm.bias.fill_(torch.inf)
    model.save_pretrained(broken)
    assert run(broken, inputs / "0.jsonl", "-o", tmp_path / "vectors", script="embed_corpus") == 2
    assert "error: the model's result is not a number: line 1 of 000000-000000" in capfd.readouterr().err
    assert list(contents(tmp_path / "vectors")) == ["manifest.json"]


def test_the_error_of_a_worker_is_shown_at_once(checkpoint, inputs, tmp_path, capfd):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text("{}")
    assert run(checkpoint, inputs / "*.jsonl", "-o", tmp_path / "out", "--workers", 2) == 2
    first, last = capfd.readouterr().err.splitlines()
    assert "a process has failed, the others go on: " in first
    assert "error: " in last
    assert "was begun with other settings" in first


def test_errors_that_only_one_file_system_has_are_on_one_line(checkpoint, inputs, tmp_path, capfd, monkeypatch):
    class NoCredentialsError(Exception):
        pass

    def refuse(*_, **__):
        raise NoCredentialsError

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "info", refuse)
    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "makedirs", refuse)
    assert run(checkpoint, "memory://a.jsonl", "-o", tmp_path / "out") == 2
    assert capfd.readouterr().err == "classify_corpus.py: error: memory://a.jsonl: NoCredentialsError\n"
    assert run(checkpoint, inputs / "0.jsonl", "-o", "memory://out") == 2
    assert capfd.readouterr().err == "classify_corpus.py: error: memory://out: NoCredentialsError\n"


def test_help_shows_examples(capsys):
    for script in ("classify_corpus", "embed_corpus"):
        with pytest.raises(SystemExit, match="0"):
            run("", "--help", script=script)
        assert f"python scripts/{script}.py reviews.jsonl -o" in capsys.readouterr().out
