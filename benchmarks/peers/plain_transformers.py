"""Photo and text classification with transformers' Trainer, fusion and all else by hand."""

import io

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    get_cosine_schedule_with_warmup,
)


class FusionModel(nn.Module):
    def __init__(self, image, text, classes, frozen, width=256):
        super().__init__()
        self.image = AutoModel.from_pretrained(image)
        self.text = AutoModel.from_pretrained(text)
        self.frozen = frozen
        self.image.requires_grad_(not frozen)
        self.text.requires_grad_(not frozen)
        self.image_projection = nn.LazyLinear(width)
        self.text_projection = nn.LazyLinear(width)
        self.join = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, classes)

    def train(self, mode=True):
        super().train(mode)
        if self.frozen:
            self.image.eval()
            self.text.eval()
        for module in self.image.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()  # in training mode the pretrained statistics are lost
        return self

    def forward(self, pixel_values, input_ids, attention_mask, labels=None):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            picture = self.image(pixel_values).last_hidden_state.flatten(2).mean(2)
            tokens = self.text(input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1)
        words = (tokens * mask).sum(1) / mask.sum(1).clamp_min(1)
        parts = [self.image_projection(picture), self.text_projection(words)]
        fused = nn.functional.gelu(self.join(nn.functional.gelu(torch.cat(parts, 1))))
        logits = self.head(fused)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


class Rows(torch.utils.data.Dataset):
    def __init__(self, file):
        self.rows = pq.read_table(file).to_pylist()

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class Collator:
    def __init__(self, image, text, labels):
        self.processor = AutoImageProcessor.from_pretrained(image)
        self.tokenizer = AutoTokenizer.from_pretrained(text)
        self.codes = {label: code for code, label in enumerate(labels)}

    def __call__(self, rows):
        pictures = [Image.open(io.BytesIO(r["image"]["bytes"])).convert("RGB") for r in rows]
        texts = [r["text"] or "" for r in rows]  # a missing text is an empty one
        options = {"padding": True, "truncation": True, "return_tensors": "pt"}
        return {
            "pixel_values": self.processor(pictures, return_tensors="pt")["pixel_values"],
            "input_ids": (coded := self.tokenizer(texts, **options))["input_ids"],
            "attention_mask": coded["attention_mask"],
            "labels": torch.tensor([self.codes[r["product"]] for r in rows]),
        }


def train(data, image, text, frozen, epochs, batch_size, parts, precision, output, seed, callbacks):
    """-> accuracy on the test rows."""
    torch.manual_seed(seed)
    rows = {split: Rows(data / f"{split}.parquet") for split in ("train", "test")}
    labels = sorted({r["product"] for r in rows["train"]})
    collator = Collator(image, text, labels)
    model = FusionModel(image, text, len(labels), frozen)
    model(**collator(rows["train"].rows[:2]))  # the lazy layers learn their widths
    encoders = [*model.image.parameters(), *model.text.parameters()]
    own = {id(p) for p in encoders}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in own], "lr": 2e-3},
        {"params": [p for p in encoders if p.requires_grad], "lr": 2e-4},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=0.05)
    steps = epochs * -(-len(rows["train"]) // batch_size)
    trainer = Trainer(
        model,
        TrainingArguments(
            output,
            seed=seed,
            num_train_epochs=epochs,
            per_device_train_batch_size=batch_size // parts,
            gradient_accumulation_steps=parts,
            per_device_eval_batch_size=batch_size // parts,
            bf16=precision == "bf16",
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            remove_unused_columns=False,
        ),
        data_collator=collator,
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
        compute_metrics=lambda p: {"accuracy": np.mean(p.predictions.argmax(-1) == p.label_ids)},
        optimizers=(optimizer, get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)),
        callbacks=callbacks,
    )
    trainer.train()
    return trainer.evaluate()["eval_accuracy"]
