"""Every wrong DistilBERT is found, by the check that should find it, at the value where it goes wrong."""

import pytest
import torch

from minibert.study.compare import compare
from minibert.study.mistakes import catalogue, mistaken

from . import mutants
from .models import HEADS, batch, model
from .mutants import MUTANTS, Mutant, build, examine, load


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.name}, {mutant.head}")
def test_mutant_is_killed_where_it_goes_wrong(mutant):
    assert examine(mutant) == (mutant.check, mutant.first)


@pytest.mark.parametrize("head", HEADS)
def test_every_mistake_of_the_catalogue_is_a_mutant(head):
    of_head = {mutant.name for mutant in mutants.CATALOGUED if mutant.head in ("DistilBertModel", head)}
    assert catalogue(model(head)).keys() == of_head


@pytest.mark.parametrize("head", HEADS)
def test_the_right_model_passes_every_check(head):
    assert examine(Mutant("none", "", head=head, file="model.py", edits={"": ""})) == (None, None)


@pytest.mark.reference
@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.check != "gradients"], ids=lambda mutant: mutant.name)
def test_transformers_kills_what_acts_in_a_forward_pass(mutant):
    pytest.importorskip("transformers")
    from .test_parity import twin

    original, inputs, labels = mutants.example(mutant.head)
    wrong = build(mutant, original)
    if mutant.check == "training":
        wrong, original, inputs = wrong.train(), original.train(), inputs | labels
    assert not compare(wrong, twin(original), inputs).ok
    assert compare(original, twin(original), inputs).ok


def test_small_weights_hide_a_tanh_gelu_from_a_look_at_the_output_alone():
    original, inputs = model(initializer_range=0.02).double(), batch()
    wrong = mistaken(original, "tanh GELU")
    with torch.no_grad():
        difference = wrong(**inputs).last_hidden_state - original(**inputs).last_hidden_state
    assert 0 < difference.abs().max() < 1e-5
    assert compare(wrong, "oracle", inputs).first_divergence == "transformer.layer.0.ffn.activation"


def test_a_mask_of_minus_1e4_changes_nothing_but_itself():
    original = model().double()
    found = compare(mistaken(original, "mask of -1e4"), original, batch())
    assert {step.name.rpartition(".")[2] for step in found.steps if not step.equal} == {"mask", "masked_scores"}


def test_an_edit_whose_text_is_gone_fails_loudly():
    with pytest.raises(ValueError, match=r"stale: 'no such text' is no longer in mask\.py"):
        load(Mutant("stale", "", file="mask.py", edits={"no such text": ""}))


def test_the_source_itself_stays_as_it_is():
    before = {path: path.read_bytes() for path in mutants.SOURCE.glob("*.py")}
    for mutant in mutants.SOURCE_EDITS[:3]:
        load(mutant)
    assert {path: path.read_bytes() for path in mutants.SOURCE.glob("*.py")} == before


def test_the_table_names_each_mutant_and_its_survivors(monkeypatch, capsys):
    monkeypatch.setattr(mutants, "MUTANTS", MUTANTS[:2])
    assert mutants.main() == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split("  ")[0] == "mutant"
    assert rows[1].split() == ["positions", "from", "1", "oracle", "embeddings.position_embeddings"]
    monkeypatch.setattr(mutants, "MUTANTS", [Mutant("harmless", "", file="mask.py", edits={"ignore": "hide"})])
    assert mutants.main() == 1
    assert capsys.readouterr().out.splitlines()[1].split() == ["harmless", "None", "None"]
