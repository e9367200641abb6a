"""Fixtures for all tests: models, tokenizers and tables small enough to make anew in each session."""

import os
import string
import tempfile
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_DATASETS_CACHE"] = str(Path(__file__).parent.parent / ".pytest_cache" / "datasets")
# Once for all tests of a process: Python imports the package of remote code from one place.
MODULES = tempfile.TemporaryDirectory()
os.environ["HF_MODULES_CACHE"] = MODULES.name

import torch
from transformers import BertConfig, BertModel, BertTokenizer

torch.set_num_threads(1)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "good", "bad", "film", "book", "was", "is", "not", "very", "##ed", "##ing"]
ROWS = [
    ("the film was very good", "positive"),
    ("a bad book", "negative"),
    ("not a good film", "negative"),
    ("the book is good", "positive"),
    ("very very bad", "negative"),
    ("good books, good films", "positive"),
    ("a film", "neutral"),
    ("the book", "neutral"),
]


@pytest.fixture(scope="session", autouse=True)
def the_same_on_every_processor():
    """Quantised layers as bitsandbytes computes them everywhere.

    On some processors it packs them for a kernel in bfloat16, which fails on layers narrower than 64.
    """
    import bitsandbytes.nn.modules

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)
        yield


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a WordPiece tokenizer whose words, letters and digits are its whole vocabulary."""
    folder = tmp_path_factory.mktemp("tokenizer")
    characters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    tokens = [*SPECIAL, *characters, *(f"##{character}" for character in characters), *WORDS]
    tokenizer = BertTokenizer(vocab={token: index for index, token in enumerate(tokens)}, model_max_length=64)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """The folder of a BertModel with 2 layers, 32 wide, and its tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = BertTokenizer.from_pretrained(tiny_tokenizer)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def small_csv(tmp_path: Path) -> Path:
    """A CSV file with the columns ``text`` and ``label``: 8 rows, 3 labels."""
    file = tmp_path / "small.csv"
    lines = [f'"{text}",{label}' for text, label in ROWS]
    file.write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    return file
