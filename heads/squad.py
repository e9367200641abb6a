"""How well answers are found, as the evaluation scripts of SQuAD count it."""

import re
import string
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["SquadScores"]

PUNCTUATION = str.maketrans("", "", string.punctuation)


class SquadScores(Metric):
    """``exact_match`` and ``f1`` in percent, equal to those of the evaluation scripts of SQuAD.

    Both ignore case, punctuation, articles and white space, and a prediction counts by the answer that it suits best.
    Rajpurkar et al., SQuAD: 100,000+ Questions for Machine Comprehension of Text, EMNLP 2016, with its script
    evaluate-v1.1.py; Rajpurkar, Jia and Liang, Know What You Don't Know, ACL 2018, with evaluate-v2.0.py.

    Args:
        no_answer: Count as the script of version 2.0 does, where an empty prediction is right if there is no answer.

    Example:
        >>> scores = SquadScores()
        >>> scores.update(["the town of Oslo"], [["Oslo", "Oslo town"]])
        >>> {name: round(value.item(), 2) for name, value in scores.compute().items()}
        {'exact_match': 0.0, 'f1': 80.0}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    exact: Tensor
    overlap: Tensor
    count: Tensor

    def __init__(self, no_answer: bool = False) -> None:
        super().__init__()
        self.no_answer = no_answer
        for state in ("exact", "overlap", "count"):
            self.add_state(state, torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, preds: Sequence[str], target: Sequence[Sequence[str]]) -> None:
        """Count some predictions.

        Args:
            preds: An answer each, empty for none.
            target: The right answers of each; an empty list if there is none.
        """
        exact, overlap = 0, 0.0
        for predicted, answers in zip(preds, target, strict=True):
            words = _words(predicted)
            right = [_words(answer) for answer in answers]
            if self.no_answer:
                right = [answer for answer in right if answer] or [[]]
            exact += max(words == answer for answer in right)
            overlap += max(self._f1(words, answer) for answer in right)
        self.exact += exact
        self.overlap += overlap
        self.count += len(preds)

    def compute(self) -> dict[str, Tensor]:
        """Percentages of all predictions."""
        return {"exact_match": 100 * self.exact / self.count, "f1": 100 * self.overlap / self.count}

    def _f1(self, predicted: list[str], answer: list[str]) -> float:
        """F1 over words; of two empty answers 1 by the script of version 2.0, and 0 by that of version 1.1."""
        if self.no_answer and not (predicted and answer):
            return float(predicted == answer)
        same = sum((Counter(predicted) & Counter(answer)).values())
        return 2 * same / (len(predicted) + len(answer)) if same else 0.0


def _words(text: str) -> list[str]:
    """The words of an answer: in lower case, without punctuation and articles."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(PUNCTUATION)).split()
