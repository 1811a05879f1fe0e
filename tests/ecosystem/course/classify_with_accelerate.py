"""The same with a plain loop and accelerate. Arguments: checkpoint, folder of the data, folder to save in."""

import sys

import torch
from accelerate import Accelerator
from datasets import load_dataset
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, get_scheduler, set_seed

from minibert import DistilBertForSequenceClassification, DistilBertTokenizer

EPOCHS = 6
checkpoint, data, folder = sys.argv[1:]
dataset = load_dataset("json", data_files={part: f"{data}/{part}.json" for part in ("train", "test")})
tokenizer = DistilBertTokenizer.from_pretrained(checkpoint)
model = DistilBertForSequenceClassification.from_pretrained(checkpoint, num_labels=2)


def tokenize(rows):
    return tokenizer(rows["sentence1"], rows["sentence2"], truncation=True)


tokenized = dataset.map(tokenize, batched=True).remove_columns(["sentence1", "sentence2"])
tokenized = tokenized.rename_column("label", "labels").with_format("torch")
collator = DataCollatorWithPadding(tokenizer)
set_seed(42)
train = DataLoader(tokenized["train"], shuffle=True, batch_size=8, collate_fn=collator)
test = DataLoader(tokenized["test"], batch_size=8, collate_fn=collator)

accelerator = Accelerator(cpu=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
model, optimizer, train, test = accelerator.prepare(model, optimizer, train, test)
steps = EPOCHS * len(train)
schedule = get_scheduler("linear", optimizer=optimizer, num_warmup_steps=0, num_training_steps=steps)

model.train()
losses = []
for _ in range(EPOCHS):
    for batch in train:
        outputs = model(**batch)
        accelerator.backward(outputs.loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(outputs.loss.item())

model.eval()
right = []
for batch in test:
    with torch.no_grad():
        outputs = model(**batch)
    found, labels = accelerator.gather_for_metrics((outputs.logits.argmax(dim=-1), batch["labels"]))
    right += (found == labels).tolist()
RESULT = {"loss": sum(losses[-12:]) / 12, "accuracy": sum(right) / len(right)}

accelerator.wait_for_everyone()
unwrapped = accelerator.unwrap_model(model)
unwrapped.save_pretrained(folder, is_main_process=accelerator.is_main_process, save_function=accelerator.save)
tokenizer.save_pretrained(folder)
