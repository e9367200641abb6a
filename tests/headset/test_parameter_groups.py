"""Groups of parameters against the grouping of transformers' Trainer and against timm's formula."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertModel,
    ViTConfig,
    ViTModel,
)
from transformers.trainer import Trainer

from backbones import Backbone, HeadsetError
from heads import Pooling, SequenceClassification
from headset import Headset
from headset.balancing import Uncertainty
from headset.optim import make_optimizer, optimizer_spec
from headset.parameter_groups import ParameterGroup, check_groups, parameter_groups

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 24}


def stock(vocab=40):
    return BertForSequenceClassification(BertConfig(vocab_size=vocab, num_labels=3, **SIZES))


@pytest.fixture
def headset():
    heads = {"topic": SequenceClassification(), "vector": Pooling(projection=4)}
    return Headset(Backbone.from_task_model(stock()), heads, labels={"topic": ["a", "b", "c"]})


def named(module, groups):
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {names[id(each)]: group for group in groups for each in group["params"]}


def test_what_decays_is_what_decays_in_trainer(headset):
    decaying = set(Trainer.get_decay_parameter_names(None, headset))
    groups = parameter_groups(headset)
    assert [group.get("weight_decay") for group in groups] == [None, 0.0]
    by_name = named(headset, groups)
    assert by_name.keys() == dict(headset.named_parameters()).keys()
    assert {name for name, group in by_name.items() if "weight_decay" not in group} == decaying
    assert "backbone.model.embeddings.word_embeddings.weight" in decaying


def test_a_norm_over_a_matrix_does_not_decay():
    module = torch.nn.Sequential(torch.nn.LayerNorm((4, 4)), torch.nn.Linear(4, 4))
    by_name = named(module, parameter_groups(module))
    assert {name for name, group in by_name.items() if "weight_decay" not in group} == {"1.weight"}


@pytest.mark.parametrize(
    "model",
    [
        lambda: stock().bert,
        lambda: DistilBertModel(DistilBertConfig(vocab_size=40, dim=16, n_layers=3, n_heads=2, hidden_dim=24)),
        lambda: ViTModel(ViTConfig(image_size=8, patch_size=4, **SIZES)),
    ],
    ids=["bert", "distilbert", "vit"],
)
def test_layer_decay_is_that_of_timm(model):
    """timm's param_groups_layer_decay: scale d^(L + 1 - group), where the stem is group 0 and the head L + 1."""
    backbone = Backbone(model())
    headset = Headset(backbone, {"vector": Pooling(projection=4)})
    by_name = named(headset, parameter_groups(headset, layer_decay=0.5))
    for name, group in by_name.items():
        layers = [int(part) for part in name.split(".") if part.isdigit()]
        inside = name.startswith("backbone.") and any(part in name for part in (".layer.", ".layers."))
        lowest = name.startswith("backbone.model.embeddings.")
        number = layers[0] + 1 if inside and layers else 0 if lowest else 4
        assert group["scale"] == pytest.approx(0.5 ** (4 - number)), name
    assert {group["scale"] for group in by_name.values()} == {1.0, 0.5, 0.25, 0.125, 0.0625}


def test_rates_of_heads_and_patterns(headset):
    patterns = [
        ParameterGroup("backbone.model.embeddings.*", learning_rate=0.7),
        ParameterGroup("*.layer.[01].*", weight_decay=0.3),
    ]
    optimizer = make_optimizer(parameter_groups(headset, {"topic": 0.1}, 0.5, patterns), None, 1e-2, 0.05)
    by_name = named(headset, optimizer.param_groups)

    def settings(name):
        return pytest.approx((by_name[name]["lr"], by_name[name]["weight_decay"]))

    assert settings("backbone.model.embeddings.word_embeddings.weight") == (0.7, 0.05)
    assert settings("backbone.model.embeddings.LayerNorm.weight") == (0.7, 0.0)
    assert settings("backbone.model.encoder.layer.1.output.dense.weight") == (1e-2 * 0.5**2, 0.3)
    assert settings("backbone.model.encoder.layer.1.output.dense.bias") == (1e-2 * 0.5**2, 0.0)
    assert settings("backbone.model.encoder.layer.2.output.dense.weight") == (1e-2 * 0.5, 0.05)
    assert settings("heads.topic.scorer.task.classifier.weight") == (0.1, 0.05)
    [vector] = [name for name in by_name if name.startswith("heads.vector.") and name.endswith("weight")]
    assert settings(vector) == (1e-2, 0.05)


def test_learned_weights_of_losses_move_faster_than_a_backbone_and_do_not_decay(headset):
    module = torch.nn.ModuleDict({"headset": headset, "loss_weights": Uncertainty(headset.heads)})
    groups = named(module, make_optimizer(parameter_groups(module), None, learning_rate=1e-4).param_groups)
    for name in headset.heads:
        group = groups[f"loss_weights.log_variances.{name}"]
        assert (group["lr"], group["weight_decay"]) == (0.01, 0.0)
    assert groups["headset.heads.vector.dense.weight"]["lr"] == 1e-4


def test_scales_and_rates_with_another_optimizer(headset):
    groups = parameter_groups(headset, 0.1, 0.5)
    optimizer = make_optimizer(groups, lambda groups: torch.optim.SGD(groups, lr=2.0, momentum=0.9))
    by_name = named(headset, optimizer.param_groups)
    assert by_name["backbone.model.encoder.layer.2.output.dense.weight"]["lr"] == 1.0
    assert by_name["heads.topic.scorer.task.classifier.weight"]["lr"] == 0.1
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0}


def test_an_optimizer_that_makes_its_own_rates(headset):
    from transformers.optimization import Adafactor

    assert make_optimizer(parameter_groups(headset), Adafactor).defaults["eps"] == (1e-30, 1e-3)
    with pytest.raises(HeadsetError, match="Adafactor makes its own learning rates"):
        make_optimizer(parameter_groups(headset, layer_decay=0.9), Adafactor)
    fixed = make_optimizer(
        parameter_groups(headset, 0.1), lambda groups: Adafactor(groups, lr=0.2, relative_step=False)
    )
    assert {group["lr"] for group in fixed.param_groups} == {0.1, 0.2}


def test_an_optimizer_of_transformers_is_made_again_from_a_checkpoint(headset):
    from transformers.optimization import Adafactor

    made = make_optimizer(parameter_groups(headset), lambda groups: Adafactor(groups, lr=0.2, relative_step=False))
    again = make_optimizer(parameter_groups(headset), optimizer_spec(made))
    assert isinstance(again, Adafactor) and again.defaults == made.defaults
    with pytest.raises(HeadsetError, match=r"other\.Sgd, which is not imported from a file"):
        make_optimizer(parameter_groups(headset), {"class_path": "other.Sgd", "init_args": {}})


def test_an_optimizer_that_takes_no_groups_is_a_clear_error(headset):
    with pytest.raises(HeadsetError, match=r"cannot be made: LBFGS.*parameter groups"):
        make_optimizer(parameter_groups(headset), torch.optim.LBFGS)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["backbone.model.encodr.*"], r"encodr\.\*' in parameter_groups fits no parameter.*backbone\.model\.enco"),
        (["*.bias", "heads.topic.*"], r"Two patterns.*heads\.topic\.scorer.*bias: '\*\.bias' and 'heads"),
        (["*.embeddings.word*"], r"only parameters that are frozen: backbone\.model\.embeddings"),
    ],
)
def test_patterns_that_are_wrong(headset, patterns, message):
    headset.backbone.freeze("embeddings")
    with pytest.raises(HeadsetError, match=message):
        parameter_groups(headset, patterns=[ParameterGroup(pattern, learning_rate=1.0) for pattern in patterns])


def test_a_decay_of_what_does_not_decay_is_an_error(headset):
    with pytest.raises(HeadsetError, match="only norms and biases"):
        parameter_groups(headset, patterns=[ParameterGroup("*.bias", weight_decay=0.1)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (({"tpoic": 1.0}, None, []), "Did you mean 'topic'"),
        ((-1.0, None, []), "Invalid head_learning_rate"),
        ((None, 1.5, []), "Invalid layer_decay"),
        ((None, None, [ParameterGroup("*")]), "neither learning_rate nor weight_decay"),
        ((None, None, [ParameterGroup("*", weight_decay=-1)]), "Invalid weight_decay"),
    ],
)
def test_settings_that_are_wrong(settings, message):
    with pytest.raises(HeadsetError, match=message):
        check_groups(["topic"], *settings)
