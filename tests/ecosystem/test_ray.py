"""Ray Data on a real local cluster: pipelines as actors, scripts/ray_classify.py, and killed processes."""

import bz2
import gzip
import json
import os
import runpy
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pytest

from minibert import DEMO
from minibert.pipeline import TextClassifier, TokenClassifier

from ..machine import needs
from .small_data import about, reviews, save_checkpoint

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}  # no reports, and no token in ~/.ray
ray = pytest.importorskip("ray", reason="needs the extra [ray]")
pytest.importorskip("ray.data")
SCRIPT = Path(__file__).parents[2] / "scripts" / "ray_classify.py"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster on this machine that believes in five CPUs: four one-CPU actors and a reader would wait for two."""
    folder = str(tmp_path_factory.mktemp("r"))  # the path of a socket in it must be short
    ray.init(num_cpus=5, include_dashboard=False, log_to_driver=False, object_store_memory=2**27, _temp_dir=folder)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def script():
    """The script as a module."""
    sys.path.insert(0, str(SCRIPT.parent))
    import ray_classify

    sys.path.pop(0)
    for module in (ray_classify, sys.modules[__name__]):
        ray.cloudpickle.register_pickle_by_value(module)  # the workers need not find it
    return ray_classify


def lines(texts):
    """What one process gives: the bytes that the script should write."""
    results = zip(texts, TextClassifier(DEMO)(texts), strict=True)
    rows = ({"text": text, "label": result.label, "score": result.score} for text, result in results)
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_each_line_and_each_input_is_read_whatever_the_file_is_called(cluster, script, tmp_path, monkeypatch):
    text = "\ufeffa\u2028nice\x0cday\r\nnot\x85nice\n"
    contents = {
        "a.txt": text.encode(),
        "b.txt.gz": gzip.compress(text.encode()),
        "_a.ndjson": b'{"text": "nice"}\n',
        "b.jsonl.bz2": bz2.compress(b'{"text": "not nice"}\n'),
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    paths = [str(tmp_path / name) for name in contents]
    assert script.main([*paths[:2], "-o", str(tmp_path / "ray")]) == 0
    assert script.main([*paths[2:], "-o", str(tmp_path / "json")]) == 0
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.setattr(sys, "argv", ["classify_corpus.py", *paths, "-o", str(tmp_path / "shards")])
    assert runpy.run_module("classify_corpus")["main"]() == 0
    found = [*sorted((tmp_path / "ray").glob("0*")), *sorted((tmp_path / "json").glob("0*"))]
    labels = [[json.loads(line)["label"] for line in path.read_text().split("\n")[:-1]] for path in found]
    expected = [path.read_text().split("\n")[:-1] for path in sorted((tmp_path / "shards").glob("0*"))]
    assert labels == [[json.loads(line)["label"] for line in each] for each in expected]
    assert list(map(len, labels)) == [2, 2, 1, 1]
    assert "\u2028" in json.loads((tmp_path / "ray" / "000000.jsonl").read_text().split("\n")[0])["text"]
    assert json.loads((tmp_path / "ray" / "manifest.json").read_text())["ray"] == ray.__version__


def test_a_path_that_ends_like_another_is_another_input(cluster, script, tmp_path):
    paths = [tmp_path / "backup" / str(tmp_path)[1:] / "b.txt", tmp_path / "b.txt"]
    paths[0].parent.mkdir(parents=True)
    for path, text in zip(paths, ("first", "second"), strict=True):
        path.write_text(text)
    assert script.main([str(paths[1]), str(paths[0]), "-o", str(tmp_path / "out")]) == 0
    texts = [json.loads((tmp_path / "out" / f"00000{i}.jsonl").read_text())["text"] for i in range(2)]
    assert texts == ["second", "first"]


@needs("batch_invariant")
def test_one_actor_and_four_write_the_bytes_of_one_process_and_do_only_what_is_missing(cluster, script, tmp_path):
    sizes = {"b": 3000, "a #1 100%20é": 2001, "empty": 0}
    texts = {name: [row["text"] for row in reviews(n, seed=n)] for name, n in sizes.items()}
    for name in texts:
        (tmp_path / f"{name}.txt").write_text("\n".join(texts[name]))
    command = [*(str(tmp_path / f"{name}.txt") for name in texts), "-o", str(tmp_path / "out")]
    files = [tmp_path / "out" / f"00000{i}.jsonl" for i in range(3)]
    assert script.main([*command, "--actors", "1"]) == 0
    assert [file.read_bytes() for file in files] == [lines(each) for each in texts.values()]

    files[0].unlink()
    files[1].write_text("complete")
    assert script.main([*command, "--actors", "4"]) == 0  # two: in the next test
    assert files[0].read_bytes() == lines(texts["b"])
    assert files[1].read_text() == "complete"


def die_once(marker):
    """Kill this process as the system does where memory is short, but only one process for each marker."""
    with suppress(FileExistsError):
        marker.touch(exist_ok=False)
        os.kill(os.getpid(), signal.SIGKILL)


@needs("batch_invariant")
def test_killed_processes_of_two_actors_lose_and_double_no_row(cluster, script, tmp_path, monkeypatch):
    class MortalClassifier(TextClassifier):
        def __call__(self, batch):
            columns = super().__call__(batch)
            if "the row 3000" in batch["text"]:
                die_once(tmp_path / "an actor died")
            return columns

    def mortal_task(batch):
        if "the row 2000" in batch["text"]:
            die_once(tmp_path / "a task died")
        return batch

    def read(paths, read_text=script.READERS["text"]):
        return read_text(paths).map_batches(mortal_task, num_cpus=0.5)  # with 1, Ray would run it in the actor

    monkeypatch.setattr(script, "TextClassifier", MortalClassifier)
    monkeypatch.setitem(script.READERS, "text", read)
    texts = [f"the row {i}" for i in range(5000)]
    (tmp_path / "a.txt").write_text("\n".join(texts))
    assert script.main([str(tmp_path / "a.txt"), "-o", str(tmp_path / "out"), "--actors", "2"]) == 0
    assert len(list(tmp_path.glob("*died"))) == 2
    assert (tmp_path / "out" / "000000.jsonl").read_bytes() == lines(texts)


def test_a_pipeline_is_an_actor_with_as_many_threads_as_cpus(cluster, tmp_path):
    save_checkpoint(tmp_path, "DistilBertForTokenClassification", id2label={0: "O", 1: "B-PER", 2: "B-LOC"})

    class Tagger(TokenClassifier):
        def __call__(self, batch):
            import torch

            threads = [torch.get_num_threads()] * len(batch["id"])
            return super().__call__(batch) | {"threads": threads}

    texts = [row["text"] for row in reviews(200)]
    rows = ray.data.from_items([{"id": i, "body": text} for i, text in enumerate(texts)], override_num_blocks=8)
    arguments = {"checkpoint": tmp_path, "text_column": "body"}
    actors = ray.data.ActorPoolStrategy(size=2)
    tagged = rows.map_batches(Tagger, fn_constructor_kwargs=arguments, compute=actors, num_cpus=2).take_all()
    assert [(row["id"], row["body"]) for row in tagged] == list(enumerate(texts))
    assert {row["threads"] for row in tagged} == {2}
    expected = [[asdict(entity) for entity in entities] for entities in TokenClassifier(tmp_path)(texts)]
    assert [row["entities"] for row in tagged] == about(expected, rel=1e-4)
    assert sum(map(len, expected)) > 100
    assert [] in expected


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ("\n", [], "text 1: it has no tokens (in the batch that begins with '')"),
        ("good\n", ["--actors", "9"], "the actors need 10 CPUs, one of them to read; the cluster has 5"),
    ],
)
def test_what_cannot_be_classified_ends_the_run_with_one_line(
    cluster, script, tmp_path, capsys, content, options, says
):
    (tmp_path / "a.txt").write_text(content)
    assert script.main([str(tmp_path / "a.txt"), "-o", str(tmp_path / "out"), *options]) == 2
    assert capsys.readouterr().err == f"ray_classify.py: error: {says}\n"
    assert not (tmp_path / "out" / "000000.jsonl").exists()


def test_inputs_that_ray_cannot_read_at_once_are_refused(script, tmp_path, capsys):
    for name in ("a.txt", "b.csv", "c.tsv"):
        (tmp_path / name).touch()
    for names, says in [
        (["a.txt", "b.csv"], "give inputs of one format, text, jsonl, csv, parquet: got csv, text"),
        (["c.tsv"], "got tsv"),
        (["d.txt"], "d.txt"),
        (["a.txt", "a.txt"], f"{tmp_path}/a.txt: is given twice"),
    ]:
        assert script.main([*(str(tmp_path / name) for name in names), "-o", str(tmp_path / "out")]) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_number_that_json_does_not_have_is_refused(script):
    with pytest.raises(ValueError, match=r"a\.csv: JSON has neither NaN nor infinity: \{'x': nan\}"):
        script.to_json_line({"x": float("nan")}, "a.csv")


def test_without_ray_the_script_names_the_extra():
    program = f"import runpy, sys; sys.modules['ray'] = None; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "ray_classify.py: error: it needs ray: pip install 'ray[data]' (the extra ray)\n"
