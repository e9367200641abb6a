"""The CRF against all sequences, one by one; which sequences are legal against what seqeval reads."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from heads.crf import CRF
from heads.tag_scheme import TagScheme

SETS = [
    ("O", "B-X", "I-X", "B-Y"),
    ("O", "B-X", "I-X", "E-X", "S-X"),
    ("B-X", "I-X", "L-X", "U-X", "O"),
    ("O", "I-X", "I-Y", "B-Y"),
    ("DET", "NOUN", "VERB"),
]
cases = st.tuples(st.sampled_from(SETS), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 99))


def legal(tags: list[str]) -> bool:
    """By the definitions of the schemes: B and S begin, E and S end, I and E go on."""
    marks = [(tag[:1], tag[2:]) if tag[1:2] == "-" else ("O", "") for tag in tags]
    prefixes = {"L": "E", "U": "S"}
    marks = [(prefixes.get(prefix, prefix), kind) for prefix, kind in marks]
    iobes = any(prefix in "ES" for prefix, _ in marks)
    for before, tag in itertools.pairwise([("O", ""), *marks, ("O", "")]):
        goes_on = tag[0] in "IE"
        if goes_on and not (before[0] in "BI" and before[1] == tag[1]):
            return False
        if iobes and before[0] in "BI" and not goes_on:
            return False
    return True


def all_legal(labels, length):
    """Every sequence that the scheme of a set allows, by a check of its own."""
    iob1 = labels == SETS[3]  # which has no B-X: I-X begins entities of X
    found = []
    for tags in itertools.product(range(len(labels)), repeat=length):
        names = [labels[tag] for tag in tags]
        if iob1:
            first = [i == 0 or names[i - 1] != "I-X" for i in range(length)]
            names = ["B-X" if name == "I-X" and new else name for name, new in zip(names, first, strict=True)]
        ends = [*names, "S-?"] if any(label[:1] in "ELSU" for label in labels) and "O" in labels else names
        if legal(ends):
            found.append(tags)
    return found


def make(labels, lengths, seed):
    torch.manual_seed(seed)
    crf = CRF(labels)
    for parameter in crf.parameters():
        torch.nn.init.normal_(parameter)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    return crf, torch.randn(*mask.shape, len(labels)) * 3, mask


def score(crf, emissions, tags):
    steps = sum(crf.transitions[a, b].item() for a, b in itertools.pairwise(tags))
    words = sum(emissions[place, tag].item() for place, tag in enumerate(tags))
    return crf.start[tags[0]].item() + words + steps + crf.end[tags[-1]].item()


@given(cases)
@settings(max_examples=80, deadline=None)
def test_likelihood_best_sequence_and_marginals_equal_enumeration(case):
    crf, emissions, mask = make(*case)
    best, chances = crf.decode(emissions, mask), crf.marginals(emissions, mask)
    for row, length in enumerate(case[1]):
        ways = all_legal(case[0], length)
        scores = torch.tensor([score(crf, emissions[row], tags) for tags in ways], dtype=torch.float64)
        logs = scores.log_softmax(0)
        assert tuple(best[row, :length].tolist()) == ways[int(scores.argmax())]
        tags = torch.tensor(ways)
        for word in range(length):
            wanted = torch.zeros(len(case[0]), dtype=torch.float64).index_add(0, tags[:, word], logs.exp())
            torch.testing.assert_close(chances[row, word].double(), wanted, atol=1e-4, rtol=1e-4)
        for way in {0, len(ways) - 1, len(ways) // 2}:
            gold = torch.zeros(mask.shape, dtype=torch.long)
            gold[row, :length] = tags[way]
            got = crf.log_likelihood(emissions, gold, mask)[row]
            torch.testing.assert_close(got.double(), logs[way], atol=1e-4, rtol=1e-4)
            assert crf.scheme.is_legal(gold, mask)[row]


def test_every_other_sequence_is_illegal():
    for labels in SETS:
        scheme = TagScheme(labels)
        ways = torch.tensor(list(itertools.product(range(len(labels)), repeat=3)))
        got = scheme.is_legal(ways, torch.ones(ways.shape, dtype=torch.bool))
        assert {tuple(way) for way in ways[got].tolist()} == set(all_legal(labels, 3))


FULL = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in "XY")]
BIO = ["O", "B-X", "I-X", "B-Y", "I-Y"]


@given(st.sampled_from([FULL, BIO]).flatmap(lambda s: st.tuples(st.just(s), st.lists(st.sampled_from(s), min_size=1))))
@settings(max_examples=300, deadline=None)
def test_illegal_tags_are_learnt_as_the_entities_that_seqeval_reads(case):
    labels, tags = case
    scheme = TagScheme(labels)
    numbers = torch.tensor([[labels.index(tag) for tag in tags] + [0, 0]])
    mask = torch.tensor([[True] * len(tags) + [False] * 2])
    found = scheme.legalised(numbers, mask)
    assert scheme.is_legal(found, mask).all()
    assert get_entities([labels[tag] for tag in found[0, : len(tags)]]) == get_entities(tags)
    assert torch.equal(scheme.legalised(found, mask)[mask], found[mask])


@given(st.lists(st.sampled_from([*FULL, "B", "I", "U-X", "L-Y"]), min_size=1, max_size=5, unique=True), st.data())
@settings(max_examples=200, deadline=None)
def test_whatever_tags_there_are_all_stays_finite(labels, data):
    torch.manual_seed(0)
    crf = CRF(labels)
    tags = torch.tensor([data.draw(st.lists(st.integers(0, len(labels) - 1), min_size=4, max_size=4))])
    emissions, mask = torch.randn(1, 4, len(labels), requires_grad=True), torch.ones(1, 4, dtype=torch.bool)
    tags = crf.scheme.legalised(tags, mask)
    (crf.log_likelihood(emissions, tags, mask) * crf.scheme.is_legal(tags, mask)).sum().backward()
    assert all(value.grad.isfinite().all() for value in (emissions, *crf.parameters()))
    assert crf.scheme.is_legal(crf.decode(emissions * 1e6, mask), mask).all()


def test_plain_tags_equal_independent_softmax_at_the_start():
    crf, emissions, mask = CRF(SETS[4]), torch.randn(2, 3, 3), torch.ones(2, 3, dtype=torch.bool)
    tags = torch.randint(3, (2, 3))
    wanted = -torch.nn.functional.cross_entropy(emissions.flatten(0, 1), tags.flatten(), reduction="none")
    torch.testing.assert_close(crf.log_likelihood(emissions, tags, mask), wanted.view(2, 3).sum(1))
    torch.testing.assert_close(crf.marginals(emissions, mask), emissions.softmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_in_half_precision(dtype):
    crf, emissions, mask = make(SETS[1], [4, 2, 1], 0)
    crf, emissions = crf.to(dtype), (emissions * 50).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        likelihood = crf.log_likelihood(emissions, torch.zeros(3, 4, dtype=torch.long), mask)
    assert likelihood.dtype == torch.float32 and (likelihood <= 0).all()
    likelihood.sum().backward()
    assert all(value.grad.isfinite().all() for value in (emissions, *crf.parameters()))
