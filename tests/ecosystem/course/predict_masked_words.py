"""A language model learns the words of a subject. Arguments: checkpoint, folder of the data, folder to save in."""

import math
import sys
from itertools import chain

from datasets import load_dataset
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments, pipeline, set_seed

from minibert import DistilBertForMaskedLM, DistilBertTokenizer

LENGTH = 32
checkpoint, data, folder = sys.argv[1:]
dataset = load_dataset("json", data_files={part: f"{data}/{part}.json" for part in ("train", "test")})
tokenizer = DistilBertTokenizer.from_pretrained(checkpoint)
model = DistilBertForMaskedLM.from_pretrained(checkpoint)


def tokenize(rows):
    inputs = tokenizer(rows["text"])
    if tokenizer.is_fast:
        inputs["word_ids"] = [inputs.word_ids(i) for i in range(len(inputs["input_ids"]))]
    return inputs


def group(rows):
    """All texts in one row, cut into chunks of equal length; the rest at the end is dropped."""
    joined = {name: list(chain.from_iterable(rows[name])) for name in rows}
    total = len(joined["input_ids"]) // LENGTH * LENGTH
    chunks = {name: [ids[i : i + LENGTH] for i in range(0, total, LENGTH)] for name, ids in joined.items()}
    chunks["labels"] = chunks["input_ids"].copy()
    return chunks


tokenized = dataset.map(tokenize, batched=True, remove_columns=["text", "label"])
chunks = tokenized.map(group, batched=True).remove_columns("word_ids")
arguments = TrainingArguments(
    folder,
    num_train_epochs=8,
    per_device_train_batch_size=4,
    learning_rate=5e-3,
    report_to="none",
    save_strategy="no",
    use_cpu=True,
)
trainer = Trainer(
    model,
    arguments,
    train_dataset=chunks["train"],
    eval_dataset=chunks["test"],
    data_collator=DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm_probability=0.3),
    processing_class=tokenizer,
)
set_seed(1)
before = trainer.evaluate()["eval_loss"]
trainer.train()
set_seed(1)
after = trainer.evaluate()["eval_loss"]
model.save_pretrained(folder)
tokenizer.save_pretrained(folder)

fill = pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")
RESULT = {
    "perplexity before": math.exp(before),
    "loss": after,
    "perplexity": math.exp(after),
    "found": fill(f"the film was {tokenizer.mask_token}")[0]["token_str"],
}
