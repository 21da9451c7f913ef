"""A sentence embedding network (MiniLM) 8 times smaller: python examples/sentences.py FOLDER [TEXT]

FOLDER is a Hugging Face folder of a BERT, such as a clone of sentence-transformers/all-MiniLM-L6-v2. TEXT is a file
with a sentence on each line, to calibrate on; by default 200 sentences are made. Needs `pip install transformers`.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoModel, AutoTokenizer

import gbnn_compress

WHO = ("A man", "The old woman", "My neighbour", "The engineer", "Nobody", "A young girl", "The judge", "Our team")
DOES = ("sold", "repaired", "painted", "described", "ignored")
WHAT = ("the house.", "a broken radio.", "two bridges.", "the new law.", "an ancient song.")
OTHERS = (
    "How do I reset my password?",
    "Photosynthesis turns light into chemical energy.",
    "The stock market fell sharply on Monday.",
    "Bake the bread at 220 degrees for half an hour.",
    "Gravity bends light.",
    "She whispered that the concert had been cancelled.",
)
"""Sentences to measure on; none of them is calibrated on."""


def batches(tokenizer, sentences: Sequence[str]) -> list[dict[str, torch.Tensor]]:
    """Keyword arguments of the network, 32 sentences at a time."""
    parts = [sentences[start : start + 32] for start in range(0, len(sentences), 32)]
    return [dict(tokenizer(list(part), padding=True, truncation=True, return_tensors="pt")) for part in parts]


def embeddings(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean over the tokens of each sentence."""
    return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def pooled(network, batch) -> torch.Tensor:
    """What counts of the network's outputs: the embeddings (N, width)."""
    return embeddings(network(**batch).last_hidden_state, batch["attention_mask"])


def made() -> Iterator[str]:
    """200 sentences."""
    return (" ".join(words) for words in itertools.product(WHO, DOES, WHAT))


def main(folder: str, text: str | None = None) -> None:
    """Compress, and compare embeddings of other sentences."""
    network, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    sentences = Path(text).read_text(encoding="utf-8").splitlines() if text else list(made())
    report = gbnn_compress.compress(
        network,
        target_ratio=8,
        data=batches(tokenizer, sentences),
        forward=pooled,
        output=Path("sentences.safetensors"),
    )
    small = gbnn_compress.load(report["artifact"]["path"]).to_module(AutoModel.from_config(network.config)).eval()
    (batch,) = batches(tokenizer, OTHERS)
    with torch.no_grad():
        same = cosine_similarity(pooled(network, batch), pooled(small, batch))
    print(f"{report['artifact']['path']}: {report['artifact']['bytes']:,} bytes, {report['ratio']:.1f}x smaller")
    print(f"cosine of embeddings before and after: mean {same.mean():.4f}, least {same.min():.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
