"""The steps of the Hugging Face course, chapters 2, 3 and 7, with the import changed.

Each script runs twice on the same checkpoint, which has the head: once as it stands, once with transformers again in
place of minibert. Both must find the same. Two scripts also run on a checkpoint without the head.
"""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from . import small_data

COURSE = Path(__file__).parent / "course"
SCRIPTS = {  # file: the head, the data, and what a trained model reaches at least
    "classify_with_trainer": ("DistilBertForSequenceClassification", small_data.pairs, {"accuracy": 0.9}),
    "classify_with_accelerate": ("DistilBertForSequenceClassification", small_data.pairs, {"accuracy": 0.9}),
    "tag_entities": ("DistilBertForTokenClassification", small_data.entities, {"accuracy": 0.9}),
    "predict_masked_words": ("DistilBertForMaskedLM", small_data.reviews, {}),
    "answer_questions": ("DistilBertForQuestionAnswering", small_data.questions, {"exact match": 0.7}),
}


@pytest.fixture
def run(bare, tmp_path, monkeypatch):
    """Run a script on a checkpoint; return its RESULT."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def run(name, checkpoint, library="minibert"):
        text = (COURSE / f"{name}.py").read_text()
        if library == "transformers":
            text = text.replace("\nfrom minibert import ", "\nfrom transformers import ")
        if checkpoint != bare:  # it has the head
            text = text.replace(", new_head=True", "")
        script = tmp_path / f"{name}_{library}.py"
        script.write_text(text)
        out = tmp_path / library
        out.mkdir(exist_ok=True)
        monkeypatch.setattr(sys, "argv", [str(script), str(checkpoint), str(tmp_path), str(out)])
        torch.manual_seed(0)
        return runpy.run_path(str(script), run_name="__main__")["RESULT"]

    return run


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_of_the_course_finds_what_it_finds_with_transformers(name, run, tmp_path):
    head, make, at_least = SCRIPTS[name]
    small_data.write(tmp_path, make)
    labels = {"id2label": dict(enumerate(["O", "B-PER", "B-LOC"]))} if name == "tag_entities" else {}
    (tmp_path / "checkpoint").mkdir()
    small_data.save_checkpoint(tmp_path / "checkpoint", head, **labels)
    print(ours := run(name, tmp_path / "checkpoint"))
    print(theirs := run(name, tmp_path / "checkpoint", "transformers"))
    assert ours == small_data.about(theirs, rel=1e-4)
    for metric, value in at_least.items():
        assert ours[metric] >= value


def test_the_course_on_a_checkpoint_without_the_head(run, bare, tmp_path):
    small_data.write(tmp_path, small_data.entities)
    result = run("tag_entities", bare)
    assert result["accuracy"] >= 0.9
    assert result["found"] == [("PER", "anna", 0, 4), ("LOC", "berlin", 14, 20)]
    small_data.write(tmp_path, small_data.questions)
    assert run("answer_questions", bare)["exact match"] >= 0.7
