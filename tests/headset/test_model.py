"""The headset as a plain module: shared passes, predictions, training state, saving whole."""

import copy

import pytest
import torch
from transformers import AutoTokenizer

from backbones import Backbone, HeadsetError
from heads import Head, HeadOutput, Pooling, SequenceClassification, TokenClassification
from headset import Headset

TEXTS = ["the film was very good", "bad", "a book is not a film"]
TOPIC = {"topic": ["sport", "politics"]}
LABELS = {"topic": ["sport", "politics"], "tags": ["O", "B-X", "I-X"]}


@pytest.fixture
def headset(tiny_bert):
    heads = {"topic": SequenceClassification(), "tags": TokenClassification(), "vector": Pooling()}
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    torch.manual_seed(0)
    return Headset(Backbone.from_pretrained(str(tiny_bert)), heads, LABELS, tokenizer).eval()


def count_passes(headset):
    passes = []
    headset.backbone.model.register_forward_hook(lambda *_: passes.append(1))
    return passes


def a_batch(headset):
    return dict(headset.tokenizer(TEXTS, padding=True, return_tensors="pt"))


def test_heads_that_ask_for_the_same_share_one_pass(headset):
    passes = count_passes(headset)
    outputs = headset(a_batch(headset))
    assert list(outputs) == ["topic", "tags", "vector"]
    assert len(passes) == 1


def test_a_head_that_reads_all_layers_joins_the_pass_and_answers_as_alone(tiny_bert):
    def make():
        torch.manual_seed(0)
        heads = {"mix": SequenceClassification(pooling="mean", hidden_layers="mix"), "plain": SequenceClassification()}
        labels = {name: ["a", "b"] for name in heads}
        return Headset(
            Backbone.from_pretrained(str(tiny_bert)), heads, labels, AutoTokenizer.from_pretrained(tiny_bert)
        )

    headset = make().eval()
    passes = count_passes(headset)
    together = headset(a_batch(headset))
    assert len(passes) == 1
    for name in ("mix", "plain"):
        alone = make().eval()(a_batch(headset), heads=[name])
        assert list(alone) == [name]
        torch.testing.assert_close(alone[name].logits, together[name].logits)


def test_losses_and_gradients_of_all_heads(headset):
    batch = a_batch(headset)
    shape = batch["input_ids"].shape
    batch["labels"] = {"topic": torch.tensor([0, 1, 1]), "tags": torch.zeros(shape, dtype=torch.long)}
    outputs = headset.train()(batch, heads=["topic", "tags"])
    losses = headset.losses(outputs, batch["labels"])
    sum(losses.values()).backward()
    assert all(p.grad is not None for name in ("topic", "tags") for p in headset.head(name).parameters())


def test_predict_gives_one_answer_a_text_and_leaves_the_mode_alone(headset):
    headset.train()
    answers = headset.predict(TEXTS, allow_untrained=True, batch_size=2)
    assert headset.training and headset.backbone.model.training
    assert [len(rows) for rows in answers.values()] == [3, 3, 3]
    assert answers["topic"][0]["label"] in LABELS["topic"]
    headset.eval()
    for index, text in enumerate(TEXTS):
        batch = dict(headset.tokenizer([text], return_tensors="pt"))
        score = headset(batch)["topic"].logits.softmax(-1).max().item()
        assert answers["topic"][index]["score"] == pytest.approx(score, abs=1e-5)


def test_predict_takes_pairs_and_words(headset):
    headset.states = dict.fromkeys(headset.states, "trained")
    pairs = headset.predict([("good film", "bad book"), ("a", "b")])
    assert {"similarity", "vectors"} == pairs["vector"][0].keys()
    first, second = headset.predict(["good film", "bad book"], heads=["vector"])["vector"]
    expected = torch.cosine_similarity(torch.tensor(first["vector"]), torch.tensor(second["vector"]), dim=0).item()
    assert pairs["vector"][0]["similarity"] == pytest.approx(expected, abs=1e-5)
    [words] = headset.predict([["good", "films", "was"]], heads=["tags"])["tags"]
    assert len(words["tags"]) == 3


def test_an_untrained_head_is_refused_until_it_is_trained(headset):
    with pytest.raises(HeadsetError, match=r"'topic' is newly initialised.*allow_untrained"):
        headset.predict(TEXTS)
    assert headset.predict(TEXTS, heads=["vector"])  # no parameters, nothing random
    headset.train()(a_batch(headset), heads=["topic"])
    assert headset.states == {"topic": "trained", "tags": "new", "vector": "new"}
    headset.predict(TEXTS, heads=["topic", "vector"])
    with torch.no_grad():
        headset(a_batch(headset), heads=["tags"])
    assert headset.states["tags"] == "new"


def test_saved_whole_it_comes_back_with_the_same_answers(headset, tmp_path):
    headset.states["topic"] = "trained"
    headset.save_pretrained(str(tmp_path / "saved"))
    again = Headset.from_pretrained(str(tmp_path / "saved"))
    assert again.states == headset.states
    assert again.labels == headset.labels
    batch = a_batch(headset)
    for name, output in headset(batch).items():
        assert torch.allclose(output.logits, again(batch)[name].logits, atol=1e-6)
    assert {file.suffix for file in (tmp_path / "saved").iterdir() if file.is_file()} == {".json", ".safetensors"}


def test_a_copy_is_whole(headset):
    twin = copy.deepcopy(headset)
    with torch.no_grad():
        for parameter in headset.parameters():
            parameter.zero_()
    assert twin(a_batch(twin))["topic"].logits.abs().sum() > 0


def test_a_pooler_that_no_head_needs_is_frozen(tiny_bert):
    backbone = Backbone.from_pretrained(str(tiny_bert))
    Headset(backbone, {"tags": TokenClassification()}, {"tags": LABELS["tags"]}).freeze_unused()
    frozen = {name for name, p in backbone.model.named_parameters() if not p.requires_grad}
    assert frozen == {"pooler.dense.weight", "pooler.dense.bias"}


def test_a_decoder_whose_padding_is_its_end_of_text_is_warned_about(tiny_bert):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert, pad_token="[SEP]", eos_token="[SEP]")
    with pytest.warns(UserWarning, match="With pooling: last, the head topic goes by the attention mask"):
        Headset(Backbone.from_pretrained(str(tiny_bert)), {"topic": SequenceClassification()}, TOPIC, tokenizer)


def test_a_tokenizer_without_a_limit_gets_the_models(tiny_bert):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert, model_max_length=10**30)
    heads = {"topic": SequenceClassification(pooling="mean")}
    headset = Headset(Backbone.from_pretrained(str(tiny_bert)), heads, TOPIC, tokenizer)
    assert tokenizer.model_max_length == 63
    assert len(headset.predict(["film " * 200], allow_untrained=True)["topic"]) == 1


@pytest.mark.parametrize("texts", ["a text", ["a", ("b", "c")], [("a", "b", "c")], [None]])
def test_what_is_not_texts_is_refused(headset, texts):
    with pytest.raises(HeadsetError, match="predict takes"):
        headset.predict(texts, allow_untrained=True)


def test_a_tagger_tags_words_also_of_plain_texts(headset):
    [row] = headset.predict(["films was good"], heads=["tags"], allow_untrained=True)["tags"]
    assert len(row["tags"]) == 3


class Plain(Head):
    """A head without arguments."""

    def build(self, context): ...

    def forward(self, features, batch):
        return HeadOutput(features.last_hidden_state)

    def loss(self, output, labels):
        return output.logits.sum()


def test_a_head_without_arguments_has_a_spec():
    assert Plain().spec()["init_args"] == {}


class Silent(Plain):
    """A head that forgets an argument."""

    def __init__(self, size: int = 3):
        super().__init__()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda b: Headset(b, {"a.b": Pooling()}), "cannot be named 'a.b'"),
        (lambda b: Headset(b, {"type": Pooling()}), "cannot be named 'type'"),
        (lambda b: Headset(b, {"topic": Pooling()}, {"topics": ["x"]}), "Did you mean 'topic'"),
        (lambda b: Headset(b, {"topic": Pooling()}).head("topc"), "Did you mean 'topic'"),
        (lambda b: Headset(b, {"topic": Pooling()}).predict(["a"]), "needs a tokenizer"),
        (lambda b: Headset(b, {"tags": TokenClassification()}), "needs the set of tags"),
        (lambda b: Silent().spec(), r"self\.size = size"),
    ],
)
def test_mistakes_are_clear_errors(tiny_bert, make, message):
    with pytest.raises(HeadsetError, match=message):
        make(Backbone.from_pretrained(str(tiny_bert)))


def test_heads_for_texts_and_for_pairs_share_the_pass_of_single_texts(tiny_bert, monkeypatch):
    backbone = Backbone.from_pretrained(str(tiny_bert))
    heads = {"topic": SequenceClassification(), "vector": Pooling()}
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_bert))
    headset = Headset(backbone, heads, labels={"topic": ["a", "b"]}, tokenizer=tokenizer).eval()
    passes, run = [], backbone.run
    monkeypatch.setattr(backbone, "run", lambda call: passes.append(call) or run(call))
    answers = headset.predict(TEXTS, allow_untrained=True)
    assert len(passes) == 1
    for name in heads:
        assert headset.predict(TEXTS, heads=[name], allow_untrained=True)[name] == answers[name]
    headset.predict([("a film", "b")], allow_untrained=True)
    assert len(passes) == 5
