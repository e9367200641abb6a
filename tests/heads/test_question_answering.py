"""QuestionAnswering: the contract, the loss of transformers, and answers as its example gives them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForQuestionAnswering

from backbones import HeadsetError
from heads import HeadOutput, QuestionAnswering
from heads.testing import check_head


@pytest.mark.parametrize("head", [QuestionAnswering(), QuestionAnswering(no_answer=True, n_best=3)])
def test_it_keeps_the_contract(head):
    check_head(head)


def test_the_loss_is_that_of_transformers():
    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    positions = torch.tensor([[0, 0], [3, 5], [2, 60], [99, 99]])
    start, end = positions.unbind(-1)
    theirs = BertForQuestionAnswering(config).eval()(
        torch.randint(90, (4, 6)), start_positions=start, end_positions=end
    )
    logits = torch.stack([theirs.start_logits, theirs.end_logits], -1)
    assert torch.equal(QuestionAnswering().loss(HeadOutput(logits), positions), theirs.loss)


def reference(logits, offsets, context, n_best, longest, version_2, threshold):
    """The answer and its chance for one row, as postprocess_qa_predictions in utils_qa.py says, or None."""
    found, null = [], min(start[0] + end[0] for start, end in logits)
    for (start, end), places in zip(logits, offsets, strict=True):
        for first in np.argsort(start)[::-1][:n_best]:
            for last in np.argsort(end)[::-1][:n_best]:
                if places[first] and places[last] and first <= last < first + longest:
                    found.append((start[first] + end[last], context[places[first][0] : places[last][1]]))
    if not found:
        return None
    best = sorted(found, reverse=True)[:n_best]
    scores = np.array([score for score, _ in best] + [null] * version_2)
    chances = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    if version_2 and null - best[0][0] > threshold:
        return "", chances[-1]
    return best[0][1], chances[0]


@settings(deadline=None)
@given(
    windows=st.lists(st.integers(4, 12), min_size=1, max_size=3),
    seed=st.integers(0, 10**6),
    n_best=st.integers(1, 20),
    longest=st.integers(1, 6),
    threshold=st.sampled_from([None, -3.0, 0.0, 3.0]),
)
def test_answers_are_those_of_the_example_of_transformers(windows, seed, n_best, longest, threshold):
    random = np.random.default_rng(seed)
    context, width = "abcdefghijklmnopqrstuvwxyz", max(windows) + 2
    logits = torch.tensor(random.normal(0, 3, (len(windows), width, 2)), dtype=torch.float32)
    places = [[None, None, *((at, at + 2) for at in range(size - 3)), None] for size in windows]
    offsets = torch.tensor([[place or (-1, -1) for place in row] + [(-1, -1)] * (width - len(row)) for row in places])
    mask = torch.arange(width) < torch.tensor(windows).unsqueeze(-1)
    meta = {"windows": [len(windows)], "contexts": [context], "offsets": offsets}
    meta["no_answer"] = torch.zeros(len(windows), dtype=torch.long)
    version_2 = threshold is not None
    head = QuestionAnswering(version_2, threshold or 0.0, longest, n_best)
    [row] = head.predict(HeadOutput(logits, {"mask": mask, "meta": meta}))
    scores = [one[:size].T.numpy() for one, size in zip(logits, windows, strict=True)]
    wanted = reference(scores, places, context, n_best, longest, version_2, threshold)
    if wanted is not None:
        assert row["answer"] == wanted[0] and row["score"] == pytest.approx(wanted[1], abs=1e-5)
    assert row["answer"] == context[row["start"] : row["end"]]
    assert version_2 or row["answer"]


def test_without_contexts_there_are_scores_and_no_answers():
    with pytest.raises(HeadsetError, match=r"headset.predict\(\[\(question, context\)"):
        QuestionAnswering().predict(HeadOutput(torch.randn(1, 4, 2), {"mask": torch.ones(1, 4), "meta": {}}))
    with pytest.raises(HeadsetError, match="Invalid n_best: 0"):
        QuestionAnswering(n_best=0)
