"""Turn a BERT encoder into a DistilBERT checkpoint: python scripts/convert_bert.py FOLDER OUT.

DistilBERT's encoder is BERT's without segments. So the tensors get other names, and one is merged: every token of a
single text is in segment 0, so the embedding of segment 0 is added to each row of the position table. The hidden states
are those of transformers' BertModel to 1e-5. The second segment (of sentence pairs), the pooler and any head are lost.

Small sentence encoders such as MiniLM can be converted too: a sentence's vector is then the mean of the hidden states
of its real tokens.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from minibert import DistilBertConfig, DistilBertModel, DistilBertTokenizer
from minibert.checkpoint import CheckpointFiles, read_tensors
from minibert.cli.output import shorten
from minibert.terminal import visible
from minibert.weights import split_encoder_and_head

CONFIG_NAMES = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "initializer_range": "initializer_range",
    "pad_token_id": "pad_token_id",
}
REQUIRED = {  # BERT can have other values, DistilBERT cannot; a field that is absent has this value
    "model_type": "bert",
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
LAYER_NAMES = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}
LEFT_OUT = ("pooler.", "cls.")  # heads named as DistilBERT's are left out as well
POSITIONS = "embeddings.position_embeddings.weight"
SEGMENTS = "embeddings.token_type_embeddings.weight"


def convert(source: str, out: Path) -> None:
    """Read a BERT checkpoint, with its tokenizer if it has one, and write a DistilBERT one.

    Raises:
        OSError: a file is missing.
        ValueError: the model differs from DistilBERT in more than names; `out` is the folder of `source`.
    """
    if Path(source).resolve() == Path(out).resolve():
        raise ValueError(f"{out}: the result would replace its source; give another folder")
    files = CheckpointFiles(source)
    content = files.read_json("config.json")
    if content is None:
        raise OSError(f"{source}: no config.json in it")
    config = convert_config(content)
    encoder, _ = split_encoder_and_head(read_tensors(files), source)
    model = DistilBertModel.from_tensors(config, convert_tensors(encoder, source), {}, source)
    if files.find("vocab.txt") or files.find("tokenizer.json"):
        DistilBertTokenizer.from_pretrained(source).save_pretrained(out)
    model.save_pretrained(out)


def convert_config(content: Mapping[str, Any]) -> DistilBertConfig:
    """Return the config of the same encoder as a DistilBERT.

    Raises:
        ValueError: a setting that DistilBERT does not have.
    """
    for name, value in REQUIRED.items():
        if content.get(name, value) != value:
            raise ValueError(f"{name} is {content[name]!r}, but a DistilBERT's is always {value!r}")
    return DistilBertConfig(**{ours: content[theirs] for theirs, ours in CONFIG_NAMES.items() if theirs in content})


def convert_tensors(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Rename the tensors and add the first segment to the positions.

    Raises:
        ValueError: there is no table of positions or segments, or the two do not fit.
    """
    converted = {}
    for stored_name, tensor in tensors.items():
        name = stored_name.removeprefix("bert.")
        if name.startswith("encoder.layer."):
            _, _, layer, rest = name.split(".", 3)
            part, _, kind = rest.rpartition(".")
            name = f"transformer.layer.{layer}.{LAYER_NAMES.get(part, part)}.{kind}"
        if not name.startswith(LEFT_OUT):
            converted[name] = tensor.float()
    if not {POSITIONS, SEGMENTS} <= converted.keys():
        raise ValueError(f"{where}: {POSITIONS} and {SEGMENTS} must be in the file")
    positions, segments = converted[POSITIONS], converted.pop(SEGMENTS)
    if not (positions.ndim == segments.ndim == 2 and len(segments) and positions.shape[1] == segments.shape[1]):
        shapes = f"{tuple(positions.shape)} and {tuple(segments.shape)}"
        raise ValueError(f"{where}: {POSITIONS} and {SEGMENTS} have the shapes {shapes}: their rows must be as wide")
    converted[POSITIONS] = positions + segments[0]
    return converted


def main() -> None:
    """Convert what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="FOLDER", help="folder of a BERT checkpoint, or its name on the Hub")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write, made where missing")
    arguments = parser.parse_args()
    try:
        convert(arguments.source, arguments.out)
    except (OSError, ValueError) as error:
        sys.exit(f"convert_bert: {visible(shorten(str(error)))}")
    print(f"{arguments.out}: a DistilBERT checkpoint. Give it single texts: the embedding of a second segment is lost")


if __name__ == "__main__":
    main()
