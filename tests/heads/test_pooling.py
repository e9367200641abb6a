"""Sentence vectors, against sentence-transformers built from the same model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss, MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Pooling as StockPooling
from sklearn.metrics import accuracy_score, label_ranking_average_precision_score
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoTokenizer

from backbones.backbone import Backbone
from backbones.errors import HeadsetError
from heads.base import HeadContext, HeadOutput
from heads.pooling import Pooling

torch.set_num_threads(1)
FIRST = ["the film was very good", "a bad book", "not a film"]
SECOND = ["good films", "the book was not good, not very", "a book"]
SCORES = torch.tensor([0.9, 0.4, 0.1])


@pytest.fixture
def backbone(tiny_bert: Path) -> Backbone:
    return Backbone.from_pretrained(str(tiny_bert)).eval()


def attached(backbone: Backbone, **init_args: Any) -> Pooling:
    torch.manual_seed(0)
    head = Pooling(**init_args)
    head.attach(HeadContext(backbone))
    return head


def encode(folder: Path, texts: list[str], side: str = "right") -> dict[str, Any]:
    batch = AutoTokenizer.from_pretrained(folder, padding_side=side)(texts, padding=True, return_tensors="pt")
    return {**batch, "meta": {"texts": 2 if texts == FIRST + SECOND else 1}}


def run(head: Pooling, backbone: Backbone, batch: dict[str, Any]) -> HeadOutput:
    call = head.request(batch)
    assert call is not None
    output: HeadOutput = head(backbone.run(call), batch)
    return output


def pairs(vectors: Tensor) -> HeadOutput:
    return HeadOutput(vectors, {"texts": 2})


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "last", ["last", "mean", "cls"]])
def test_vectors_equal_sentence_transformers(
    tiny_bert: Path, backbone: Backbone, pooling: str | list[str], side: str
) -> None:
    modes = ["cls", "mean", "lasttoken"] if isinstance(pooling, list) else [pooling.replace("last", "lasttoken")]
    head = attached(backbone, pooling=pooling, projection=6, normalize=True)
    stock_pooling = StockPooling(32, modes)
    dense = Dense(32 * len(modes), 6, activation_function=torch.nn.Identity())
    assert head.dense is not None
    dense.linear.load_state_dict(head.dense.state_dict())
    modules = [Transformer(str(tiny_bert)), stock_pooling, dense, Normalize()]
    expected = SentenceTransformer(modules=modules, device="cpu").encode(FIRST, convert_to_tensor=True)
    batch = encode(tiny_bert, FIRST, side)
    batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)  # BERT counts padding otherwise
    assert_close(run(head, backbone, batch).logits, expected, rtol=1e-5, atol=1e-5)


def test_hidden_layers(tiny_bert: Path, backbone: Backbone) -> None:
    batch = encode(tiny_bert, FIRST)
    states = backbone(output_hidden_states=True, **{key: value for key, value in batch.items() if key != "meta"})
    for choice, expected in [(1, states.hidden_states[1]), ([-1, 0], torch.cat(states.hidden_states[::-2], dim=-1))]:
        head = attached(backbone, pooling="cls", hidden_layers=choice)
        assert_close(run(head, backbone, batch).logits, expected[:, 0], rtol=1e-5, atol=1e-6)


def test_contrastive_loss_equals_multiple_negatives_ranking() -> None:
    vectors = torch.randn(10, 7)
    stock = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=1 / 0.1)  # type: ignore[arg-type]
    expected = stock.compute_loss_from_embeddings(list(vectors.chunk(2)), torch.empty(0))
    assert_close(Pooling(temperature=0.1).loss(pairs(vectors), None), expected)


def test_third_texts_are_hard_negatives_for_all_rows() -> None:
    vectors = torch.randn(12, 7)
    stock = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=1 / 0.1)  # type: ignore[arg-type]
    expected = stock.compute_loss_from_embeddings(list(vectors.chunk(3)), torch.empty(0))
    head, output = Pooling(temperature=0.1), HeadOutput(vectors, {"texts": 3})
    assert_close(head.loss(output, None), expected)
    some = head.select(output, torch.tensor([0, 3]))
    assert_close(head.loss(some, None), stock.compute_loss_from_embeddings([x[[0, 3]] for x in vectors.chunk(3)], None))
    assert (head.loss_size(output, None), head.loss_size(some, None)) == (4, 2)
    assert head.metric_inputs(output, None)[0].shape == (4, 8)
    first, second, third = vectors.chunk(3)
    for row, answer in enumerate(head.predict(output)):
        assert answer["similarity"] == pytest.approx(torch.cosine_similarity(first[row], second[row], dim=0).item())
        assert_close(torch.tensor(answer["vectors"]), torch.stack([first[row], second[row], third[row]]))


def test_similarity_loss_equals_cosine_similarity() -> None:
    vectors = torch.randn(6, 7)
    stock = CosineSimilarityLoss(torch.nn.Identity())  # type: ignore[arg-type]
    expected = stock.compute_loss_from_embeddings(list(vectors.chunk(2)), SCORES)
    assert_close(Pooling(objective="similarity").loss(pairs(vectors), SCORES), expected)


@pytest.mark.parametrize("objective", ["contrastive", "similarity"])
def test_gradients_reach_head_and_backbone(tiny_bert: Path, backbone: Backbone, objective: str) -> None:
    head = attached(backbone, pooling=["mean", "attention"], hidden_layers="mix", projection=6, objective=objective)
    head.loss(run(head, backbone, encode(tiny_bert, FIRST + SECOND)), SCORES).backward()
    parameters = {**dict(head.named_parameters()), "backbone": backbone.model.get_input_embeddings().weight}
    mixed = {"layers.weights", "layers.gamma", "pooler.query", "dense.weight", "dense.bias"}
    assert parameters.keys() == {*mixed, "backbone"}
    for name, parameter in parameters.items():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_projection_starts_as_linear_layers_of_transformers(backbone: Backbone) -> None:
    dense = attached(backbone, projection=4096).dense
    assert dense is not None and dense.bias.eq(0).all()
    assert_close(dense.weight.std().item(), backbone.spec.initializer_range, rtol=0.02, atol=0)


def test_predictions(tiny_bert: Path, backbone: Backbone) -> None:
    head = attached(backbone)
    alone = head.predict(run(head, backbone, encode(tiny_bert, FIRST)))
    paired = head.predict(run(head, backbone, encode(tiny_bert, FIRST + SECOND)))
    assert [list(row) for row in alone] == [["vector"]] * 3
    for row, pair in zip(alone, paired, strict=True):
        left, right = (torch.tensor(vector) for vector in pair["vectors"])
        assert_close(torch.tensor(row["vector"]), left, rtol=1e-5, atol=1e-5)
        assert pair["similarity"] == pytest.approx(torch.cosine_similarity(left, right, dim=0).item(), abs=1e-5)


@given(st.lists(st.integers(2, 6), min_size=1, max_size=3), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_contrastive_metrics_equal_scikit_learn(sizes: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    head = Pooling()
    metrics = head.metrics()
    found = reciprocal = 0.0
    for size in sizes:
        output = pairs(torch.randn(2 * size, 5))
        cosines, target = head.metric_inputs(output, None)
        metrics.update(cosines, target)
        found += accuracy_score(target, cosines.argmax(dim=1), normalize=False)
        reciprocal += size * label_ranking_average_precision_score(torch.eye(size), cosines)
    expected = {"accuracy": found / sum(sizes), "mrr": reciprocal / sum(sizes)}
    assert {name: value.item() for name, value in metrics.compute().items()} == pytest.approx(expected, abs=1e-5)


def test_vectors_that_are_all_equal_find_nothing() -> None:
    head = Pooling()
    values = head.metrics()(*head.metric_inputs(pairs(torch.ones(8, 4)), None))
    assert (values["accuracy"].item(), values["mrr"].item()) == (0.0, 0.25)


def test_similarity_metrics_equal_scipy() -> None:
    head = Pooling(objective="similarity")
    metrics = head.metrics()
    batches = [(torch.randn(2 * size, 5), torch.rand(size)) for size in (4, 7)]
    for vectors, scores in batches:
        metrics.update(*head.metric_inputs(pairs(vectors), scores))
    cosines = torch.cat([torch.cosine_similarity(*vectors.chunk(2)) for vectors, _ in batches])
    scores = torch.cat([scores for _, scores in batches])
    values = {name: value.item() for name, value in metrics.compute().items()}
    expected = {"spearman": spearmanr(cosines, scores).statistic, "pearson": pearsonr(cosines, scores).statistic}
    assert values == pytest.approx({name: float(value) for name, value in expected.items()}, abs=1e-5)


@pytest.mark.parametrize(
    ("init_args", "message"),
    [
        ({"pooling": "maen"}, r"Invalid pooling mode: 'maen'.* Did you mean 'mean'\?"),
        ({"hidden_layers": "mxi"}, "Invalid hidden layer: 'mxi'"),
        ({"objective": "similar"}, "Invalid objective: 'similar'. Valid objectives: contrastive, similarity."),
        ({"temperature": 0}, "Expected a temperature above 0, got 0"),
        ({"projection": 0}, "Expected a projection to at least 1 dimension, got 0"),
    ],
)
def test_wrong_arguments_fail_before_anything_is_loaded(init_args: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadsetError, match=message):
        Pooling(**init_args)


def test_learning_needs_pairs_and_scores() -> None:
    with pytest.raises(HeadsetError, match=r"one text a row. Name two columns"):
        Pooling().loss(HeadOutput(torch.randn(4, 3), {"texts": 1}), None)
    with pytest.raises(HeadsetError, match="learns from a score for each pair"):
        Pooling(objective="similarity").loss(pairs(torch.randn(4, 3)), None)
