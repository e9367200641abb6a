"""MaskedLM: the contract, masks and losses of transformers, perplexity of torchmetrics, the fill-mask pipeline."""

import pytest
import torch
from sklearn.metrics import accuracy_score
from torchmetrics.text import Perplexity
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    FillMaskPipeline,
)

from backbones import Backbone, HeadsetError
from heads import HeadContext, HeadOutput, MaskedLM, SequenceClassification
from heads.testing import check_head, tiny_backbone, tiny_tokenizer
from headset import Headset
from headset.text_encoder import TextEncoder

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.mark.parametrize("head", [MaskedLM(), MaskedLM(whole_words=True)], ids=["tokens", "whole words"])
def test_it_keeps_the_contract(head):
    check_head(head)


def attached(**settings):
    head = MaskedLM(**settings)
    head.attach(HeadContext(tiny_backbone(), tokenizer=tiny_tokenizer()))
    return head


def rows(count, length, seed=0):
    """Rows of ``[CLS] words [SEP] [PAD] ...``, each one shorter than the one before, with an unknown word in each."""
    ids = torch.randint(5, 64, (count, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 0], ids[:, 3] = 2, 1
    for row in range(count):
        end = length - 1 - row % 8
        ids[row, end], ids[row, end + 1 :] = 3, 0
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def shares(before, after, labels, specials=5):
    """Of all that can be masked, what is; and of that what becomes the mask token, another one, and stays."""
    masked = labels != -100
    assert torch.equal(labels[masked], before[masked]) and torch.equal(after[~masked], before[~masked])
    assert not (masked & (before < specials)).any()
    replaced, kept = after[masked] == 4, after[masked] == before[masked]
    parts = [masked.sum() / (before >= specials).sum(), replaced.float().mean(), kept.float().mean()]
    return torch.stack([*parts, (~replaced & ~kept).float().mean()])


@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_as_much_is_masked_as_by_the_collator(probability):
    batch = rows(600, 64)
    head = attached(mlm_probability=probability)
    collator = DataCollatorForLanguageModeling(tiny_tokenizer(), mlm_probability=probability, seed=0)
    theirs = collator([{"input_ids": ids} for ids in batch["input_ids"].tolist()])
    wanted = shares(batch["input_ids"], theirs["input_ids"], theirs["labels"])
    torch.manual_seed(0)
    for mode in (True, False):
        head.train(mode)
        changed, labels = head.prepare(batch, None)
        torch.testing.assert_close(shares(batch["input_ids"], changed["input_ids"], labels), wanted, rtol=0, atol=0.015)


def test_whole_words_are_masked_as_a_whole_as_by_the_collator(tiny_tokenizer):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    words = ["the", "goodness", "badly", "film", "unbelievable", "book", "was", "notebooks"]
    order = torch.randint(len(words), (600, 6), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [" ".join(words[word] for word in row) for row in order]
    config = BertConfig(vocab_size=len(tokenizer), **SIZES)
    headset = Headset(Backbone.from_config(config), {"words": MaskedLM(whole_words=True)}, tokenizer=tokenizer)
    encoder = TextEncoder(tokenizer, word_ids=True)
    encoded = encoder.encode([texts])
    examples = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
    batch = encoder.collate(examples)
    _, labels = headset.head("words").prepare(batch, None)

    only_masks = {"mask_replace_prob": 1, "random_replace_prob": 0}
    collator = DataCollatorForLanguageModeling(tokenizer, whole_word_mask=True, seed=0, **only_masks)
    given = {"return_special_tokens_mask": True, "return_offsets_mapping": True}
    features = tokenizer(texts, padding=True, return_tensors="pt", **given)
    theirs = collator.torch_mask_tokens(
        features["input_ids"], features["special_tokens_mask"], features["offset_mapping"]
    )[1]

    found = []
    for masked in (labels != -100, theirs != -100):
        states = [
            {state.item() for state in masked[row][batch["meta"]["word_ids"][row] == word]}
            for row in range(len(texts))
            for word in range(6)
        ]
        assert all(len(state) == 1 for state in states)
        found.append(sum(state == {True} for state in states) / len(states))
    assert found == [pytest.approx(0.15, abs=0.02)] * 2


def test_masks_of_training_follow_the_seed_and_those_of_evaluation_the_text_alone():
    head, batch = attached(), rows(8, 24)
    torch.manual_seed(3)
    first = head.prepare(batch, None)[1]
    assert not torch.equal(head.prepare(batch, None)[1], first)
    torch.manual_seed(3)
    assert torch.equal(head.prepare(batch, None)[1], first)
    head.eval()
    changed, labels = head.prepare(batch, None)
    for row in range(8):
        alone = {key: value[row : row + 1].flip(-1).flip(-1)[:, : 24 - row % 8] for key, value in batch.items()}
        padded = {key: torch.nn.functional.pad(value, (5, 0)) for key, value in alone.items()}
        its, gold = head.prepare(padded, None)
        assert torch.equal(gold[0, 5:], labels[row, : 24 - row % 8])
        assert torch.equal(its["input_ids"][0, 5:], changed["input_ids"][row, : 24 - row % 8])


def test_a_training_batch_is_never_without_a_masked_token():
    head, batch = attached(), {"input_ids": torch.tensor([[2, 9, 3]])}
    for _ in range(30):
        assert head.prepare(batch, None)[1].tolist() == [[-100, 9, -100]]
    _, labels = head.prepare({"input_ids": torch.tensor([[2, 3]])}, None)  # nothing is left of a text
    logits = torch.randn(1, 2, 64, requires_grad=True)
    head.loss(HeadOutput(logits), labels).backward()
    assert logits.grad.isfinite().all()
    assert head.eval().loss(HeadOutput(logits), labels).item() == 0


def test_the_loss_is_that_of_transformers():
    torch.manual_seed(0)
    labels = torch.randint(64, (3, 6)).masked_fill(torch.rand(3, 6) > 0.5, -100)
    theirs = BertForMaskedLM(BertConfig(vocab_size=64, **SIZES)).eval()(torch.randint(5, 64, (3, 6)), labels=labels)
    assert torch.equal(MaskedLM().loss(HeadOutput(theirs.logits), labels), theirs.loss)


def test_metrics_are_over_all_masked_tokens():
    head = attached()
    metrics, theirs = head.metrics(), Perplexity(ignore_index=-100)
    answers, gold = [], []
    for seed, share in enumerate([0.1, 0.9, 0.0, 0.5]):  # batches with few, many and no masked tokens
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(2, 9, 64, generator=generator) * 3
        labels = torch.randint(64, (2, 9), generator=generator)
        labels = labels.masked_fill(torch.rand(2, 9, generator=generator) > share, -100)
        metrics.update(*head.metric_inputs(HeadOutput(logits), labels))
        theirs.update(logits, labels)
        answers += logits.argmax(-1)[labels != -100].tolist()
        gold += labels[labels != -100].tolist()
    found = metrics.compute()
    assert found["perplexity"].item() == pytest.approx(theirs.compute().item(), rel=1e-5)
    assert found["accuracy"].item() == pytest.approx(accuracy_score(gold, answers))
    impossible = torch.full((1, 64), -1e4).index_fill_(1, torch.tensor([0]), 0.0)
    metrics.update(impossible, torch.tensor([0]))
    assert metrics.compute()["perplexity"].isfinite()


def test_predictions_are_those_of_the_pipeline(tiny_tokenizer):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    torch.manual_seed(0)
    stock = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **SIZES)).eval()
    headset = Headset.from_transformers(stock, "words", processor=tokenizer)
    texts = ["the [MASK] was good", "a [MASK] and a very bad [MASK] film", "not a film"]
    answers = [row["masks"] for row in headset.predict(texts)["words"]]
    fill = FillMaskPipeline(stock, tokenizer)
    for mine, theirs in zip(answers, [[fill(texts[0])], fill(texts[1]), []], strict=True):
        assert len(mine) == len(theirs)
        for one, other in zip(
            [it for mask in mine for it in mask], [it for mask in theirs for it in mask], strict=True
        ):
            assert one == other | {"score": pytest.approx(other["score"], rel=1e-4)}


def test_other_heads_see_what_is_not_masked():
    heads = {"words": MaskedLM(), "topic": SequenceClassification()}
    headset = Headset(tiny_backbone(), heads, {"topic": ["a", "b"]}, tokenizer=tiny_tokenizer())
    batch = rows(4, 20) | {"labels": {"topic": torch.tensor([0, 1, 0, 1])}}
    batches, labels = headset.prepare(batch)
    assert torch.equal(batches["topic"]["input_ids"], batch["input_ids"])
    assert (batches["words"]["input_ids"] == 4).any() and not (batch["input_ids"] == 4).any()
    losses = headset.losses(headset.answer(batches), labels)
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_token": None}, "of this 'bert' model .* has no mask token"),
        ({"more": 3}, "has 67 tokens, and the 'bert' model knows 64"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(change, message):
    tokenizer = tiny_tokenizer()
    if "more" in change:
        tokenizer.add_tokens(["new", "words", "here"])
    else:
        tokenizer.mask_token = None
    with pytest.raises(HeadsetError, match=message):
        Headset(tiny_backbone(), {"words": MaskedLM()}, tokenizer=tokenizer)


def test_what_is_needed_is_said():
    headset = Headset(tiny_backbone(), {"words": MaskedLM(whole_words=True)})
    with pytest.raises(HeadsetError, match="needs the tokenizer"):
        headset.prepare(rows(2, 8))
    headset = Headset(tiny_backbone(), {"words": MaskedLM(whole_words=True)}, tokenizer=tiny_tokenizer())
    with pytest.raises(HeadsetError, match="whole_words needs the word of each token"):
        headset.prepare(rows(2, 8))
    with pytest.raises(HeadsetError, match="Invalid mlm_probability"):
        MaskedLM(mlm_probability=1.5)
    with pytest.raises(HeadsetError, match="Invalid top_k: 0"):
        MaskedLM(top_k=0)
