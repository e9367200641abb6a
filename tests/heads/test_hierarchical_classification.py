"""HierarchicalClassification: the contract, probabilities and F1 by counting, consistent answers."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from backbones import Backbone, HeadsetError
from heads import HeadContext, HeadOutput, HierarchicalClassification
from heads.hierarchy import PathTarget
from heads.testing import check_head, tiny_backbone
from headset import Headset

# A path ends at an inner node (sport), one at the first level, and one goes down to the third.
LABELS = ("politics", "sport", "sport/ball/football", "sport/ball/golf", "sport/chess")


def test_it_keeps_the_contract():
    check_head(HierarchicalClassification(), LABELS)
    check_head(HierarchicalClassification(pooling="attention", hidden_layers="mix"), ("O", "B", "B/X"))


@pytest.fixture
def run():
    """The head, what it answers for three texts, and its scores of steps by their names."""
    torch.manual_seed(0)
    head, backbone = HierarchicalClassification(dropout=0.0), tiny_backbone().eval()
    head.attach(HeadContext(backbone, LABELS))
    torch.nn.init.normal_(head.scorer.linear.weight)
    batch = {"input_ids": torch.randint(5, 64, (3, 7))}
    features = backbone.run(head.request(batch))
    scores = head.scorer(features, batch)["logits"]
    steps = ["politics", "sport", "sport/ball", "sport/ball/football", "sport/ball/golf", "sport/chess", "sport/"]
    return head, head(features, batch), dict(zip(steps, scores.T, strict=True))


def test_probabilities_are_products_of_softmaxes_over_children(run):
    head, output, scores = run

    def step(name, *others):
        return scores[name].exp() / sum(scores[other].exp() for other in (name, *others))

    sport = step("sport", "politics")
    ball = step("sport/ball", "sport/chess", "sport/")
    wanted = [
        step("politics", "sport"),
        sport * step("sport/", "sport/ball", "sport/chess"),
        sport * ball * step("sport/ball/football", "sport/ball/golf"),
        sport * ball * step("sport/ball/golf", "sport/ball/football"),
        sport * step("sport/chess", "sport/ball", "sport/"),
    ]
    torch.testing.assert_close(output.logits.exp(), torch.stack(wanted, 1))
    torch.testing.assert_close(output.logits.exp().sum(1), torch.ones(3))
    labels = torch.tensor([2, 0, 1])
    chosen = torch.stack([wanted[label][row] for row, label in enumerate(labels)])
    torch.testing.assert_close(head.loss(output, labels), -chosen.log().mean())


def test_answers_are_consistent(run):
    head, output, _ = run
    chances = output.logits.exp()
    for row, answer in enumerate(head.predict(output)):
        names = [level["label"] for level in answer["levels"]]
        assert names == ["/".join(answer["label"].split("/")[:end]) for end in range(1, len(names) + 1)]
        scores = [level["score"] for level in answer["levels"]]
        assert scores == sorted(scores, reverse=True)
        for level in answer["levels"]:
            below = [i for i, name in enumerate(LABELS) if f"{name}/".startswith(f"{level['label']}/")]
            assert level["score"] == pytest.approx(chances[row, below].sum().item(), abs=1e-6)
        assert answer["label"] == LABELS[chances[row].argmax()] and answer["score"] == max(answer["scores"].values())


def test_metrics_are_counts_of_nodes():
    head = HierarchicalClassification()
    head.labels = LABELS
    said, true = torch.tensor([0, 1, 2, 2, 3, 4, 4, 0]), torch.tensor([0, 2, 1, 3, 3, 1, 4, 2])

    def nodes(label):
        parts = LABELS[label].split("/")
        return {"/".join(parts[:end]) for end in range(1, len(parts) + 1)}

    pairs = [(nodes(a), nodes(b)) for a, b in zip(said.tolist(), true.tolist(), strict=True)]
    shared = sum(len(a & b) for a, b in pairs)
    precision, recall = shared / sum(len(a) for a, _ in pairs), shared / sum(len(b) for _, b in pairs)
    wanted = {"hierarchical_f1": 2 * precision * recall / (precision + recall), "accuracy": 3 / 8}
    for level in (1, 2, 3):
        cut = [("/".join(LABELS[i].split("/")[:level]), LABELS[j].split("/")) for i, j in zip(said, true, strict=True)]
        rows = [a == "/".join(b[:level]) for a, b in cut if len(b) >= level]
        wanted[f"accuracy_level_{level}"] = sum(rows) / len(rows)
    metrics = head.metrics()
    for part in torch.arange(8).split(3):
        logits = torch.nn.functional.one_hot(said[part], 5).float()
        metrics.update(*head.metric_inputs(HeadOutput(logits), true[part]))
    assert {name: value.item() for name, value in metrics.compute().items()} == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("sport/chess", "sport/chess"),
        (" sport / chess ", "sport/chess"),
        (["sport", "ball", "golf"], "sport/ball/golf"),
        (["sport", None, None], "sport"),
        (["sport", "chess", ""], "sport/chess"),
        (3, "3"),
    ],
)
def test_paths(value, path):
    assert PathTarget().path(value) == path


@pytest.mark.parametrize("value", [None, "", "/", "sport//golf", ["sport", None, "golf"], [], [None]])
def test_what_is_no_path_is_refused(value):
    with pytest.raises(HeadsetError, match="expected a path such as sport/football"):
        PathTarget().encode(value, LABELS)


def test_labels_are_found_and_checked():
    target = PathTarget(">")
    rows = ["a>b", ["a", "c"], None, {"no": "path"}, "a"]
    assert target.find_labels(rows) == ("a", "a>b", "a>c")
    assert target.join({"coarse": "a", "fine": "b"}) == ["a", "b"]
    with pytest.raises(HeadsetError, match="unknown label 'a>x'"):
        target.encode("a>x", ("a", "a>b"))
    with pytest.raises(HeadsetError, match="has the separator '>' in it"):
        target.encode(["a>b", "c"], ("a>b",))


def test_the_export_is_a_text_classifier(tiny_bert, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    heads = {"topic": HierarchicalClassification(pooling=["attention", "cls"], hidden_layers="mix")}
    headset = Headset(Backbone.from_pretrained(str(tiny_bert)), heads, {"topic": LABELS}, tokenizer).eval()
    for parameter in headset.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    headset.states["topic"] = "trained"
    place = headset.export(str(tmp_path / "out"))["topic"]
    model = AutoModelForSequenceClassification.from_pretrained(place, trust_remote_code=True)
    texts = ["the film was very good", "a bad book"]
    theirs = pipeline("text-classification", model=model, tokenizer=tokenizer)(texts)
    for one, ours in zip(theirs, headset.predict(texts)["topic"], strict=True):
        assert one["label"] == ours["label"] and one["score"] == pytest.approx(ours["score"], abs=1e-5)
    [row] = model.predict(tokenizer(texts[:1], return_tensors="pt"))
    assert row["levels"][0]["label"] == row["label"].split("/")[0]
