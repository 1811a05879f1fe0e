#!/usr/bin/env python3
"""Train the small classifier that ships with minibert, from scratch, on the Sentence Polarity Dataset v1.0.

    python scripts/train_demo_model.py FOLDER        # FOLDER holds rt-polarity.pos and rt-polarity.neg

Seeded, on one thread, with the vocabulary in the output folder: the same machine gives the same bytes.
"""

import argparse
import copy
import random
import time
from pathlib import Path

import torch
from torch import Tensor

from minibert import DEMO, DistilBertConfig, DistilBertForSequenceClassification, DistilBertTokenizer, pack
from minibert.kernels import Int8Linear
from minibert.study.walk import SENTENCES

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY, LENGTH = 8000, 128
EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 5, 64, 1e-3, 0.05
HIDDEN_WORDS = (
    0.15  # share of the words that each training step replaces by [MASK], against overfitting to single words
)
AVERAGING = 0.99  # the weights that are kept are a running average of those of each step

Examples = list[tuple[str, int]]


def main() -> None:
    """Train, save, and measure what was saved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds rt-polarity.pos and rt-polarity.neg")
    parser.add_argument("--out", type=Path, default=DEMO, help="default: the package's demo folder")
    parser.add_argument(
        "--train-vocab", action="store_true", help="train a new vocabulary first; it varies from run to run"
    )
    parser.add_argument("--validate", action="store_true", help="hold out a second tenth, to choose settings by")
    parser.add_argument("--report", action="store_true", help="train nothing, measure what is in the output folder")
    options = parser.parse_args()
    if options.report and (options.validate or options.train_vocab):
        parser.error(
            "--report measures a model trained on all but the first tenth: leave out --validate and --train-vocab"
        )
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)

    held_out, train = read(options.folder)
    if options.validate:
        held_out, train = train[: len(held_out)], train[len(held_out) :]
    if not options.report:
        train_model(train, options.out, options.train_vocab)
    report(options.out, held_out)


def train_model(examples: Examples, out: Path, new_vocabulary: bool) -> None:
    """Train from scratch and save, with the vocabulary in `out` or a new one."""
    if new_vocabulary:
        train_vocabulary([text for text, _ in examples], VOCABULARY, out)
    vocab = {token: i for i, token in enumerate((out / "vocab.txt").read_text("utf-8").split("\n")[:-1])}
    tokenizer = DistilBertTokenizer(vocab, model_max_length=LENGTH)
    config = DistilBertConfig(
        vocab_size=len(vocab),
        max_position_embeddings=LENGTH,
        dim=64,
        n_layers=3,
        n_heads=4,
        hidden_dim=128,
        dropout=0.2,
        attention_dropout=0.0,
        initializer_range=0.05,
        id2label={0: "NEGATIVE", 1: "POSITIVE"},
    )
    model = DistilBertForSequenceClassification(config)
    fit(model, tokenizer, examples).half().save_pretrained(out)  # half the bytes; loading makes it float32 again
    tokenizer.save_pretrained(out)


def read(folder: Path) -> tuple[Examples, Examples]:
    """Return a held-out tenth and the rest, shuffled with a fixed seed."""
    examples = [
        (line.strip(), label)
        for label, name in enumerate(("rt-polarity.neg", "rt-polarity.pos"))
        for line in (folder / name).read_text("utf-8").split("\n")
        if line.strip()
    ]
    random.Random(0).shuffle(examples)
    return examples[: len(examples) // 10], examples[len(examples) // 10 :]


def train_vocabulary(texts: list[str], size: int, folder: Path) -> None:
    """Train WordPiece on the training texts and write vocab.txt, [PAD] first."""
    try:
        from tokenizers import BertWordPieceTokenizer
    except ImportError:
        raise SystemExit(
            "--train-vocab needs the tokenizers package: pip install tokenizers (the extra train)"
        ) from None
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    alphabet = [chr(i) for i in range(33, 127) if not chr(i).isupper()]  # so that no English word is [UNK]
    tokenizer.train_from_iterator(
        texts, size, initial_alphabet=alphabet, limit_alphabet=100, special_tokens=SPECIAL_TOKENS, show_progress=False
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_model(str(folder))


def fit(
    model: DistilBertForSequenceClassification, tokenizer: DistilBertTokenizer, examples: Examples
) -> DistilBertForSequenceClassification:
    """Train, and return the running average of the weights."""
    average = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * -(-len(examples) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for epoch in range(1, EPOCHS + 1):
        start, total = time.perf_counter(), 0.0
        model.train()
        for i in (order := torch.randperm(len(examples))).split(BATCH):
            batch = [examples[j] for j in i.tolist()]
            inputs = tokenizer([text for text, _ in batch], padding=True, truncation=True, return_tensors="pt")
            labels = torch.tensor([label for _, label in batch])
            loss = model(hide_words(inputs.input_ids, tokenizer), inputs.attention_mask, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                    kept.lerp_(new, 1 - AVERAGING)
            total += loss.item() * len(batch)
        print(f"epoch {epoch}: loss {total / len(order):.3f}, {time.perf_counter() - start:.0f} s", flush=True)
    return average


def hide_words(input_ids: Tensor, tokenizer: DistilBertTokenizer) -> Tensor:
    """Replace some tokens by [MASK], special ones excepted."""
    hidden = (torch.rand(input_ids.shape) < HIDDEN_WORDS) & (input_ids >= len(SPECIAL_TOKENS))
    return input_ids.masked_fill(hidden, tokenizer.vocab["[MASK]"])


@torch.no_grad()
def report(folder: Path, held_out: Examples) -> None:
    """Load what was saved and print its accuracy, in int8 too, its size, and the sentences of the walk."""
    model = DistilBertForSequenceClassification.from_pretrained(folder)
    tokenizer = DistilBertTokenizer.from_pretrained(folder)
    inputs = tokenizer([text for text, _ in held_out], padding=True, truncation=True, return_tensors="pt")
    labels = torch.tensor([label for _, label in held_out])
    logits = pack(model)(**inputs).logits
    accuracy = (logits.argmax(-1) == labels).float().mean().item()
    majority = max(labels.float().mean().item(), 1 - labels.float().mean().item())
    print(
        f"held-out tenth, {len(held_out)} texts: accuracy {accuracy:.1%}; always the more frequent label {majority:.1%}"
    )
    if Int8Linear.is_available():
        quantized = pack(model, int8=True)(**inputs).logits
        accuracy = (quantized.argmax(-1) == labels).float().mean().item()
        kept = (quantized.argmax(-1) == logits.argmax(-1)).sum().item()
        change, spread = (quantized - logits).abs(), logits.std().item()
        print(
            f"int8: accuracy {accuracy:.1%}, {kept} of {len(held_out)} labels kept; logits (standard deviation "
            f"{spread:.2f}) change by {change.mean().item():.3f} on average, {change.max().item():.3f} at most"
        )
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {size:,} bytes in {folder}")
    inputs = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    print("padded, without a mask:", model(inputs.input_ids).logits.tolist())
    print("padded, with the mask: ", model(**inputs).logits.tolist())


if __name__ == "__main__":
    main()
