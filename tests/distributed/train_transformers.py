"""Hugging Face's Trainer with a small random GPT-2, and BERT: what gtopk promises, and going on from one of its checkpoints."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.utils.data import Dataset

import gtopk

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))
from imagenet import import_torchvision

import_torchvision()  # the Trainer imports it, and beside a CPU build of PyTorch that takes help
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from gtopk.frameworks.transformers import GTopKCallback

MASK = 0  # no byte of a text


def gpt2():
    """Writes on."""
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=256, n_positions=32, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )


def bert():
    """Finds what is masked."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertForMaskedLM(BertConfig(vocab_size=256, max_position_embeddings=32, **sizes))


class Pages(Dataset):
    """Pieces of this project's README, a token a byte. For BERT, one in five is masked and to be found."""

    def __init__(self, masked):
        self.masked = masked
        self.text = torch.frombuffer(bytearray((ROOT / "README.md").read_bytes()), dtype=torch.uint8).long()

    def __len__(self):
        return 128

    def __getitem__(self, place):
        piece = self.text[place * 32 : place * 32 + 32]
        if not self.masked:
            return {"input_ids": piece, "labels": piece}
        hidden = torch.rand(32, generator=torch.Generator().manual_seed(place)) < 0.2
        return {"input_ids": piece.masked_fill(hidden, MASK), "labels": piece.masked_fill(~hidden, -100)}


def trainer_in(folder, steps, make, seed=0):
    torch.manual_seed(seed)
    arguments = TrainingArguments(
        output_dir=folder,
        use_cpu=True,
        ddp_backend="gloo",
        max_steps=steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=5e-3,
        lr_scheduler_type="constant",
        save_steps=10,
        logging_steps=5,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(model=make(), args=arguments, train_dataset=Pages(masked=make is bert))
    callback = GTopKCallback(trainer, density=0.05)
    trainer.add_callback(callback)
    return trainer, callback


def weights_of(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def check(folder, make):
    trainer, callback = trainer_in(folder, 20, make)
    trainer.train()
    weights, stats = weights_of(trainer), callback.state.stats()
    everywhere = gtopk.allgather(weights[None])
    assert (everywhere == everywhere[0]).all()
    assert stats["step"] + 1 == 20
    assert 0 < stats["count"] < 0.06 * len(weights)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.3, losses

    # Resumed after step 10, it ends with the same bits: the residual is part of the checkpoint, wherever it writes its own.
    again, resumed = trainer_in(f"{folder}/elsewhere", 20, make, seed=1)
    again.train(resume_from_checkpoint=str(Path(folder) / "checkpoint-10"))
    assert resumed.state.stats()["step"] + 1 == 20
    assert torch.equal(weights_of(again), weights)


def main(folder):
    for make in (gpt2, bert):
        check(f"{folder}/{make.__name__}", make)
    print(f"trained on {gtopk.size()} ranks", flush=True)


if __name__ == "__main__":
    main(sys.argv[2])
