"""The same on a GPU: tokens a second in bfloat16, and the share of what the card can do, against Trainer."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from benchmarks.speed.machine import machine, versions
from benchmarks.speed.measuring import Found, Side, measure
from benchmarks.speed.report import Line, lines_of, table
from benchmarks.speed.tables import Row
from benchmarks.speed.texts import Texts, write_jsonl
from benchmarks.speed.training import read_rows

__all__ = ["CARDS", "PEAKS", "Card", "flops_of", "gpu_section", "kept_section", "measure_gpu", "peak_of_card"]

TITLE = "## On a GPU"
SECTION = """\

`python -m benchmarks.speed --gpu --write docs/speed.md` measures a base-size and a large encoder and a decoder of 0.8
billion weights, all random, in bfloat16, on rows of 8 to 512 tokens: tokens a second, padding left out, and the share
of what the card can do, against Trainer with its best settings (bfloat16, group_by_length, fused AdamW, worker
processes that load).

"""
NOT_MEASURED = "Not measured yet: no GPU was at hand.\n"

# Dense bfloat16 operations a second, as their maker has them.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12, "B200": 2250e12}
SPECIAL = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
OURS, DEFAULT, BEST = "headset", "Trainer", "Trainer, best settings"


@dataclass(frozen=True)
class Card:
    """How much is measured.

    Args:
        models: The configurations by name.
        batch: The rows of a batch.
        steps: The steps of a training.
        rounds: How often each side has its turn.
        words: How many words there are.
        longest: The most tokens of a row.
        workers: The processes that load.
    """

    models: Mapping[str, PreTrainedConfig]
    batch: int = 64
    steps: int = 100
    rounds: int = 3
    words: int = 30_000
    longest: int = 512
    workers: int = 4


CARDS = Card(
    {
        "base encoder": BertConfig(vocab_size=30_005),
        "large encoder": BertConfig(
            vocab_size=30_005, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
        ),
        "decoder of 0.8 B": LlamaConfig(
            vocab_size=30_005, hidden_size=1536, num_hidden_layers=20, num_attention_heads=12, intermediate_size=6144
        ),
    }
)


def measure_gpu(
    card: Card, folder: Path, log: Path, peak: float | None, here: bool = False, tell: Callable[[str], None] = print
) -> list[Line]:
    """Measure every model.

    Args:
        card: How much.
        folder: Where files are written.
        log: The file for what the sides print.
        peak: The operations a second that the card can do; None where that is not known.
        here: Whether all run in this process.
        tell: Is told what runs now.
    """
    rows = _random_rows(card)
    train = str(write_jsonl(rows, folder / "rows.jsonl"))
    lines: list[Line] = []
    for name, config in card.models.items():
        place = folder / name.replace(" ", "_")
        _write_model(config, card, place)
        found, failures = measure(_sides(card, str(place), train), card.rounds, log, here, tell)
        lengths = [len(text.split()) + 2 for text in read_rows(train)["text"]]
        flops = flops_of(config, lengths) / len(lengths)
        found = _with_tokens(found, sum(lengths) / len(lengths), flops / peak if peak else 0.0)
        lines += lines_of("gpu", _rows(name, peak), found, failures)
    return lines


def gpu_section(lines: Sequence[Line]) -> str:
    """The part of the page about GPUs, from what was measured; without lines it says that nothing was."""
    told = NOT_MEASURED
    if lines:
        told = f"Machine: {machine()}.  \nVersions: {versions()}.  \nMeasured on {date.today().isoformat()}.\n\n"
        told += "\n".join(table(lines)) + "\n"
    return f"{TITLE}\n{SECTION}{told}"


def kept_section(page: Path) -> str:
    """The part about GPUs that a page has already; they are measured at other times."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    return TITLE + text.split(TITLE)[1] if TITLE in text else gpu_section([])


def flops_of(config: PreTrainedConfig, lengths: Sequence[int]) -> float:
    """The operations of a step of training on rows of so many tokens: forwards, and twice as many backwards.

    Six for each token and each weight of a matrix, without embeddings, and those of attention, twelve times layers
    times width times the square of the length, or half of them where tokens see no later ones (Chowdhery et al. 2022,
    https://arxiv.org/abs/2204.02311, appendix B).
    """
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    causal = 0.5 if config.model_type == "llama" else 1.0
    attention = 12 * config.num_hidden_layers * config.hidden_size * sum(length**2 for length in lengths) * causal
    return float(6 * weights * sum(lengths) + attention)


def peak_of_card() -> float | None:
    """What the card can do, if it is one of `PEAKS`."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((peak for part, peak in PEAKS.items() if part in name.replace("-", " ").split()), None)


def _sides(card: Card, model: str, train: str) -> list[Side]:
    where = "benchmarks.speed.training"
    work = {"model": model, "train": train, "folder": model, "max_length": card.longest, "batch": card.batch}
    work |= {"half": True, "accelerator": "gpu" if torch.cuda.is_available() else "cpu", "workers": card.workers}
    return [
        Side(OURS, f"{where}:HeadsetSide", work),
        Side(BEST, f"{where}:TrainerSide", {**work, "sampling": "group_by_length"}),
        Side(DEFAULT, f"{where}:TrainerSide", {**work, "workers": 0}),
    ]


def _rows(name: str, peak: float | None) -> list[Row]:
    large = name.startswith("large")
    rows = [
        Row(f"training, {name}, bf16", OURS, theirs, goal, "tokens") for theirs, goal in ((BEST, 2), (DEFAULT, None))
    ]
    if peak:
        rows.append(Row(f"share of the card's peak, {name}", OURS, "", 0.5 if large else None, "share"))
        rows.append(Row(f"share of the card's peak, {name}", BEST, "", None, "share"))
    return rows


def _with_tokens(found: Found, tokens: float, share: float) -> Found:
    """The numbers with tokens a second, and the share of the peak; both are as many for each row."""
    return {
        name: [{**its, "tokens": its["rate"] * tokens, "share": its["rate"] * share} for its in numbers]
        for name, numbers in found.items()
    }


def _random_rows(card: Card) -> Texts:
    """Rows of random words: few long ones, many short ones."""
    draw = random.Random(0)
    texts = []
    for _ in range(card.batch * card.steps):
        length = max(8, min(card.longest, round(draw.lognormvariate(4.6, 0.9)))) - 2
        texts.append(" ".join(f"w{draw.randrange(card.words)}" for _ in range(length)))
    return Texts("random words", texts, draw.choices(("no", "yes"), k=len(texts)))


def _write_model(config: Any, card: Card, folder: Path) -> None:
    """A folder with a configuration and a tokenizer, and no weights."""
    words = SPECIAL | {f"w{number}": len(SPECIAL) + number for number in range(card.words)}
    backend = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=card.longest, **names)
    tokenizer.save_pretrained(folder)
    changed: Any = AutoConfig.for_model(**{**config.to_dict(), "pad_token_id": 0})
    changed.save_pretrained(folder)
