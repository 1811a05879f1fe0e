"""Where in a text is the answer? Arguments: checkpoint, folder of the data, folder to save in.

The one change beside the import: `new_head=True`, since minibert draws no head at random that nobody asked for.
"""

import sys

import numpy as np
from datasets import load_dataset
from transformers import Trainer, TrainingArguments

from minibert import DistilBertForQuestionAnswering, DistilBertTokenizer

LENGTH, STRIDE = 24, 8
checkpoint, data, folder = sys.argv[1:]
dataset = load_dataset("json", data_files={part: f"{data}/{part}.json" for part in ("train", "test")})
tokenizer = DistilBertTokenizer.from_pretrained(checkpoint)
model = DistilBertForQuestionAnswering.from_pretrained(checkpoint, new_head=True)


def windows(rows):
    return tokenizer(
        [question.strip() for question in rows["question"]],
        rows["context"],
        max_length=LENGTH,
        truncation="only_second",
        stride=STRIDE,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding="max_length",
    )


def label(rows):
    """The tokens where the answer starts and ends; [CLS], number 0, in a window without the answer."""
    inputs = windows(rows)
    offset_mapping = inputs.pop("offset_mapping")
    samples = inputs.pop("overflow_to_sample_mapping")
    starts, ends = [], []
    for i, offsets in enumerate(offset_mapping):
        answer = rows["answers"][samples[i]]
        start = answer["answer_start"][0]
        end = start + len(answer["text"][0])
        sequence_ids = inputs.sequence_ids(i)
        context = [j for j, sequence in enumerate(sequence_ids) if sequence == 1]
        if offsets[context[0]][0] > start or offsets[context[-1]][1] < end:
            starts.append(0)
            ends.append(0)
        else:
            starts.append(next(j for j in reversed(context) if offsets[j][0] <= start))
            ends.append(next(j for j in context if offsets[j][1] >= end))
    inputs["start_positions"], inputs["end_positions"] = starts, ends
    return inputs


def keep_offsets(rows):
    """For the search of the answers: which row a window belongs to, and the offsets of its context."""
    inputs = windows(rows)
    samples = inputs.pop("overflow_to_sample_mapping")
    inputs["example_id"] = [rows["id"][sample] for sample in samples]
    for i, offsets in enumerate(inputs["offset_mapping"]):
        sequence_ids = inputs.sequence_ids(i)
        inputs["offset_mapping"][i] = [o if sequence_ids[j] == 1 else None for j, o in enumerate(offsets)]
    return inputs


def best_answer(example, features, start_logits, end_logits):
    """Of all windows of a text the span with the highest sum of the two logits."""
    candidates = []
    for i, feature in enumerate(features):
        if feature["example_id"] != example["id"]:
            continue
        for start in np.argsort(start_logits[i])[::-1][:5]:
            for end in np.argsort(end_logits[i])[::-1][:5]:
                offsets = feature["offset_mapping"]
                if offsets[start] is not None and offsets[end] is not None and start <= end < start + 5:
                    text = example["context"][offsets[start][0] : offsets[end][1]]
                    candidates.append((start_logits[i][start] + end_logits[i][end], text))
    return max(candidates)[1] if candidates else ""


columns = dataset["train"].column_names
train = dataset["train"].map(label, batched=True, remove_columns=columns)
test = dataset["test"].map(keep_offsets, batched=True, remove_columns=columns)
arguments = TrainingArguments(
    folder,
    num_train_epochs=6,
    per_device_train_batch_size=8,
    learning_rate=5e-3,
    weight_decay=0.01,
    report_to="none",
    save_strategy="no",
    use_cpu=True,
)
trainer = Trainer(model, arguments, train_dataset=train, processing_class=tokenizer)
trained = trainer.train()
start_logits, end_logits = trainer.predict(test.remove_columns(["example_id", "offset_mapping"])).predictions
features = list(test)
answers = [best_answer(example, features, start_logits, end_logits) for example in dataset["test"]]
right = [answer == example["answers"]["text"][0] for answer, example in zip(answers, dataset["test"], strict=True)]
RESULT = {"loss": trained.training_loss, "windows": len(train), "exact match": sum(right) / len(right)}
model.save_pretrained(folder)
tokenizer.save_pretrained(folder)
