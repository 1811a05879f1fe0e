"""scripts/convert_bert.py: a BERT of one segment is a DistilBERT of the same hidden states."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minibert import DistilBertModel, DistilBertTokenizer

from .checkpoints import rewrite_config, write_tensors

SCRIPT = Path(__file__).parents[1] / "scripts" / "convert_bert.py"
SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
}
convert = runpy.run_path(str(SCRIPT))["convert"]
POSITIONS, SEGMENTS = (f"embeddings.{name}_embeddings.weight" for name in ("position", "token_type"))

pytestmark = pytest.mark.reference


@pytest.fixture
def transformers():
    package = pytest.importorskip("transformers")
    package.utils.logging.disable_progress_bar()
    return package


@pytest.fixture
def bert(transformers, tmp_path):
    """A BERT encoder in tmp_path/bert, its LayerNorms not left at 1 and 0."""
    made = transformers.BertModel(transformers.BertConfig(**SIZES, attn_implementation="eager")).eval()
    randomize(made)
    made.save_pretrained(tmp_path / "bert")
    return made


def randomize(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)


def assert_same_hidden_states(ours, theirs):
    ids = torch.randint(1, 50, (3, 7))
    mask = (torch.arange(7) < torch.tensor([7, 3, 1])[:, None]).long()
    mine = ours(ids, mask, output_hidden_states=True)
    other = theirs(ids, attention_mask=mask, output_hidden_states=True)
    for a, b in zip(mine.hidden_states, other.hidden_states, strict=True):
        assert (a - b).abs().max() <= 1e-5


def test_the_hidden_states_are_berts(tmp_path, bert):
    convert(str(tmp_path / "bert"), tmp_path / "out")
    assert_same_hidden_states(DistilBertModel.from_pretrained(tmp_path / "out"), bert)


def test_a_bert_with_a_head_gives_its_encoder(tmp_path, transformers):
    theirs = transformers.BertForMaskedLM(transformers.BertConfig(**SIZES, hidden_act="relu")).eval()
    randomize(theirs)
    theirs.save_pretrained(tmp_path / "bert")
    convert(str(tmp_path / "bert"), tmp_path / "out")
    assert_same_hidden_states(DistilBertModel.from_pretrained(tmp_path / "out"), theirs.bert)


def test_the_tokenizer_comes_along_on_the_command_line(tmp_path, bert):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world"]
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "bert" / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 16}')
    command = [sys.executable, SCRIPT, tmp_path / "bert", tmp_path / "out"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "a DistilBERT checkpoint" in done.stdout
    assert DistilBertTokenizer.from_pretrained(tmp_path / "out")("Hello world").input_ids == [2, 5, 6, 3]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta', but a DistilBERT's is always 'bert'"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05, but a DistilBERT's is always 1e-12"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"hidden_act": "gelu_new"}, "activation must be one of"),
    ],
)
def test_what_differs_in_more_than_names_is_refused(tmp_path, bert, fields, message):
    rewrite_config(tmp_path / "bert", **fields)
    with pytest.raises(ValueError, match=message):
        convert(str(tmp_path / "bert"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t | {"encoder.layer.0.adapter.weight": torch.zeros(2)},
            r"unexpected \['transformer.layer.0.adapter",
        ),
        (
            lambda t: {name: x for name, x in t.items() if "query" not in name},
            r"missing \['transformer.layer.0.attention.q",
        ),
        (lambda t: {name: x for name, x in t.items() if "token_type" not in name}, "must be in the file"),
        (lambda t: t | {POSITIONS: torch.zeros(4, 5)}, r"have the shapes \(4, 5\) and \(2, 32\): their rows must"),
        (lambda t: t | {SEGMENTS: torch.zeros(2, 4)}, r"have the shapes \(16, 32\) and \(2, 4\)"),
        (lambda t: t | {SEGMENTS: torch.zeros(0, 32)}, r"have the shapes \(16, 32\) and \(0, 32\)"),
        (lambda t: t | {SEGMENTS: torch.zeros(32)}, r"have the shapes \(16, 32\) and \(32,\)"),
    ],
    ids=["more", "less", "no segments", "positions", "segments", "no rows", "one row"],
)
def test_tensors_that_are_not_berts_are_refused(tmp_path, bert, change, message):
    path = tmp_path / "bert" / "model.safetensors"
    write_tensors(change(load_file(path)), path)
    with pytest.raises(ValueError, match=message):
        convert(str(tmp_path / "bert"), tmp_path / "out")


def test_a_folder_without_a_config_is_refused_on_one_line(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, tmp_path, tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"convert_bert: {tmp_path}: no config.json in it\n"


def test_an_error_is_short_and_does_not_control_the_terminal(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    tensors = {"encoder.layer.0.\x1b[31mHACK\n" + "a" * 10_000: torch.zeros(1)}
    tensors |= {POSITIONS: torch.zeros(1, 1), SEGMENTS: torch.zeros(1, 1)}
    write_tensors(tensors, tmp_path / "model.safetensors")
    done = subprocess.run([sys.executable, SCRIPT, tmp_path, tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "HACK" in done.stderr
    assert done.stderr.removesuffix("\n").isprintable()
    assert len(done.stderr) < 600


def test_a_checkpoint_is_not_replaced_by_its_own_conversion(tmp_path, bert):
    before = sorted((file.name, file.read_bytes()) for file in (tmp_path / "bert").iterdir())
    with pytest.raises(ValueError, match="would replace its source"):
        convert(str(tmp_path / "bert"), tmp_path / "out" / ".." / "bert")
    assert sorted((file.name, file.read_bytes()) for file in (tmp_path / "bert").iterdir()) == before
