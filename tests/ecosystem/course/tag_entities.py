"""Which words are names and places? Arguments: checkpoint, folder of the data, folder to save in."""

import sys

from datasets import load_dataset
from transformers import DataCollatorForTokenClassification, Trainer, TrainingArguments, pipeline

from minibert import DistilBertForTokenClassification, DistilBertTokenizer

checkpoint, data, folder = sys.argv[1:]
dataset = load_dataset("json", data_files={part: f"{data}/{part}.json" for part in ("train", "test")})
names = ["O", "B-PER", "B-LOC"]
id2label = dict(enumerate(names))
label2id = {name: i for i, name in id2label.items()}
tokenizer = DistilBertTokenizer.from_pretrained(checkpoint)
assert tokenizer.is_fast


def align(tags, word_ids):
    """The tag of a word goes to its first token; the others are left out of the loss."""
    previous, labels = None, []
    for word in word_ids:
        labels.append(-100 if word is None or word == previous else tags[word])
        previous = word
    return labels


def tokenize(rows):
    inputs = tokenizer(rows["tokens"], truncation=True, is_split_into_words=True)
    inputs["labels"] = [align(tags, inputs.word_ids(i)) for i, tags in enumerate(rows["ner_tags"])]
    return inputs


def compute_metrics(predicted):
    logits, labels = predicted
    return {"accuracy": float((logits.argmax(axis=-1) == labels)[labels != -100].mean())}


tokenized = dataset.map(tokenize, batched=True, remove_columns=dataset["train"].column_names)
model = DistilBertForTokenClassification.from_pretrained(checkpoint, id2label=id2label, label2id=label2id)
assert model.config.num_labels == 3
arguments = TrainingArguments(
    folder,
    eval_strategy="epoch",
    num_train_epochs=4,
    per_device_train_batch_size=8,
    learning_rate=5e-3,
    weight_decay=0.01,
    report_to="none",
    save_strategy="no",
    use_cpu=True,
)
trainer = Trainer(
    model,
    arguments,
    train_dataset=tokenized["train"],
    eval_dataset=tokenized["test"],
    data_collator=DataCollatorForTokenClassification(tokenizer=tokenizer),
    compute_metrics=compute_metrics,
    processing_class=tokenizer,
)
trainer.train()
metrics = trainer.evaluate()
model.save_pretrained(folder)
tokenizer.save_pretrained(folder)

tag = pipeline("token-classification", model=model, tokenizer=tokenizer, aggregation_strategy="simple", device="cpu")
found = tag("anna works in berlin")
RESULT = {
    "loss": metrics["eval_loss"],
    "accuracy": metrics["eval_accuracy"],
    "found": [(entity["entity_group"], entity["word"], entity["start"], entity["end"]) for entity in found],
}
