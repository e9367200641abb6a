"""Exact match and F1 against the definitions in the evaluation scripts of SQuAD, and against torchmetrics."""

import collections
import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.text import squad

from heads.squad import SquadScores

WORDS = st.sampled_from(["the", "A", "an", "Oslo", "oslo,", "town", "don't", "--", "theatre", "1,000", "é", "\u00a0x"])
ANSWERS = st.lists(WORDS, min_size=1, max_size=4).map(" ".join)
ROWS = st.lists(st.tuples(st.just("") | ANSWERS, st.lists(ANSWERS, max_size=3)), min_size=1, max_size=6)


def normal(text):
    text = "".join(one for one in text.lower() if one not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def official(rows, version_2):
    """The two numbers of evaluate-v1.1.py or of evaluate-v2.0.py."""

    def f1(answer, right):
        mine, theirs = normal(answer).split(), normal(right).split()
        same = sum((collections.Counter(mine) & collections.Counter(theirs)).values())
        if version_2 and (not mine or not theirs):
            return int(mine == theirs)
        if same == 0:
            return 0
        precision, recall = same / len(mine), same / len(theirs)
        return 2 * precision * recall / (precision + recall)

    exact, overlap = [], []
    for answer, right in rows:
        if version_2:
            right = [one for one in right if normal(one)] or [""]
        exact.append(max(int(normal(answer) == normal(one)) for one in right))
        overlap.append(max(f1(answer, one) for one in right))
    return 100 * sum(exact) / len(rows), 100 * sum(overlap) / len(rows)


def ours(rows, version_2):
    scores = SquadScores(version_2)
    for answer, right in rows:
        scores.update([answer], [right])
    found = scores.compute()
    return found["exact_match"].item(), found["f1"].item()


@settings(deadline=None)
@given(ROWS, st.booleans())
def test_scores_are_those_of_the_scripts(rows, version_2):
    rows = [(answer, right) for answer, right in rows if right or version_2]
    if rows:
        assert ours(rows, version_2) == pytest.approx(official(rows, version_2), abs=1e-4)


@settings(deadline=None)
@given(ROWS)
def test_scores_are_those_of_torchmetrics(rows):
    rows = [(answer, right) for answer, right in rows if right and all(map(normal, right))]
    answers = [{"prediction_text": answer, "id": str(row)} for row, (answer, _) in enumerate(rows)]
    right = [{"answers": {"text": one, "answer_start": []}, "id": str(row)} for row, (_, one) in enumerate(rows)]
    if rows:
        theirs = squad(answers, right)
        assert ours(rows, False) == pytest.approx((theirs["exact_match"].item(), theirs["f1"].item()), abs=1e-4)
