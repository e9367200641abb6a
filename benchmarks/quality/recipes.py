"""What others offer for the same: the examples of transformers, sentence-transformers' trainer, and TF-IDF."""

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import FeatureUnion, make_pipeline

from backbones.loading import resolve_path
from benchmarks.quality.scores import pool_of
from benchmarks.quality.tasks import WARMUP, WEIGHT_DECAY, Split, Task

__all__ = ["sentence_transformers", "tfidf", "trainer"]


def trainer(task: Task, train: Split, test: Split, seed: int, folder: Path) -> list[Any]:
    """Train as ``run_glue.py`` and ``run_ner.py`` of transformers do, and answer for the test split."""
    from transformers import (
        AutoConfig,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
        DataCollatorForTokenClassification,
        DataCollatorWithPadding,
        Trainer,
        set_seed,
    )

    set_seed(seed)
    path = resolve_path(task.model)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokens = task.kind == "token"
    names = label_names(task, train)
    config = AutoConfig.from_pretrained(path, num_labels=len(names) or 1)
    kind = AutoModelForTokenClassification if tokens else AutoModelForSequenceClassification
    model = kind.from_pretrained(path, config=config)
    collator = DataCollatorForTokenClassification if tokens else DataCollatorWithPadding
    runner = Trainer(
        model=model,
        args=_arguments(task, train, seed, folder),
        train_dataset=_encode(task, train, tokenizer, names),
        data_collator=collator(tokenizer),
        processing_class=tokenizer,
    )
    runner.train()
    encoded = _encode(task, test, tokenizer, None)
    logits = np.asarray(runner.predict(encoded).predictions)
    if task.kind == "regression":
        return [float(value) for value in logits.reshape(-1)]
    if not tokens:
        return [names[index] for index in logits.argmax(-1)]
    answers = []
    for words, row in zip(test.texts, logits.argmax(-1), strict=True):
        word_ids = tokenizer(words, is_split_into_words=True, truncation=True, max_length=task.max_length).word_ids()
        tags: list[str | None] = [None] * len(words)
        for position in _first_of_words(word_ids):
            tags[word_ids[position]] = names[row[position]]
        answers.append(tags)
    return answers


def sentence_transformers(task: Task, train: Split, test: Split, seed: int, folder: Path) -> np.ndarray[Any, Any]:
    """Train with ``SentenceTransformerTrainer`` and ``MultipleNegativesRankingLoss``; similarities to the pool."""
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import set_seed

    set_seed(seed)
    model = SentenceTransformer(resolve_path(task.model), device="cpu")
    model.max_seq_length = task.max_length
    SentenceTransformerTrainer(
        model=model,
        args=_arguments(task, train, seed, folder),
        train_dataset=Dataset.from_dict({"anchor": train.texts, "positive": train.labels}),
        loss=MultipleNegativesRankingLoss(model),
    ).train()
    first, second = (model.encode(texts, convert_to_numpy=True) for texts in (test.texts, pool_of(test.labels)))
    return np.asarray(model.similarity(first, second))


def tfidf(task: Task, train: Split, test: Split, seed: int, folder: Path) -> Any:
    """Without a network: TF-IDF and a linear model, the cosine of TF-IDF, or words with their neighbours."""
    if task.kind == "token":
        features = make_pipeline(DictVectorizer(), LogisticRegression(max_iter=1000, C=10.0))
        tags = [tag for row in train.labels for tag in row]
        features.fit([it for words in train.texts for it in _word_features(words)], tags)
        return [list(features.predict(_word_features(words))) for words in test.texts]
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    if task.kind == "pair":
        letters.fit([*train.texts, *train.labels])
        similarity = letters.transform(test.texts) @ letters.transform(pool_of(test.labels)).T
        return similarity.toarray()
    linear = Ridge() if task.kind == "regression" else LogisticRegression(max_iter=1000, C=10.0)
    model = make_pipeline(FeatureUnion([("words", words), ("letters", letters)]), linear)
    model.fit(train.texts, train.labels)
    return model.predict(test.texts).tolist()


def label_names(task: Task, train: Split) -> list[str]:
    """The label set of a task, sorted; empty where there is none."""
    if task.kind == "token":
        return sorted({tag for row in train.labels for tag in row})
    return sorted(set(train.labels)) if task.kind == "sequence" else []


def _arguments(task: Task, train: Split, seed: int, folder: Path) -> Any:
    from sentence_transformers import SentenceTransformerTrainingArguments
    from transformers import TrainingArguments

    steps = -(-len(train.texts) // task.batch_size) * task.epochs
    kind = SentenceTransformerTrainingArguments if task.kind == "pair" else TrainingArguments
    return kind(
        output_dir=str(folder),
        per_device_train_batch_size=task.batch_size,
        per_device_eval_batch_size=task.batch_size,
        num_train_epochs=task.epochs,
        learning_rate=task.learning_rate,
        weight_decay=WEIGHT_DECAY,
        warmup_steps=round(WARMUP * steps),
        seed=seed,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _encode(task: Task, rows: Split, tokenizer: Any, names: list[str] | None) -> Dataset:
    """Tokens, and with a label set the labels: of words at their first token, as run_ner.py has them by default."""
    tokens = task.kind == "token"
    encoded = tokenizer(rows.texts, truncation=True, max_length=task.max_length, is_split_into_words=tokens)
    columns: dict[str, Any] = dict(encoded)
    if names is None:
        return Dataset.from_dict(columns)
    if tokens:
        columns["labels"] = []
        for row, tags in enumerate(rows.labels):
            word_ids = encoded.word_ids(row)
            labels = [-100] * len(word_ids)
            for position in _first_of_words(word_ids):
                labels[position] = names.index(tags[word_ids[position]])
            columns["labels"].append(labels)
    else:
        columns["labels"] = [names.index(label) if names else label for label in rows.labels]
    return Dataset.from_dict(columns)


def _first_of_words(word_ids: list[int | None]) -> list[int]:
    """The positions at which a word begins."""
    before = [None, *word_ids]
    return [at for at, word in enumerate(word_ids) if word is not None and word != before[at]]


def _word_features(words: list[str]) -> list[dict[str, Any]]:
    """Of each word: itself, its shape, its ends, its place, and its two neighbours on either side."""
    padded = ["<", "<", *(word.lower() for word in words), ">", ">"]
    return [
        {
            "place": min(index, 4),
            "left": min(len(words) - 1 - index, 4),
            "shape": "".join("0" if letter.isdigit() else "a" if letter.isalpha() else letter for letter in word)[:6],
            "start": word[:3].lower(),
            "end": word[-3:].lower(),
            **{f"word{offset - 2}": padded[index + offset] for offset in range(5)},
        }
        for index, word in enumerate(words)
    ]
