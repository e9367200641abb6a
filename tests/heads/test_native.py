"""Native heads against the stock models: logits, losses, gradients and the way out, for architectures of all kinds."""

import pytest
import torch
import transformers
from transformers import AutoConfig

from backbones import Backbone, HeadsetError
from heads import HeadContext, SequenceClassification, TokenClassification
from heads.native import NativeModel
from heads.task_models import task_class

LABELS = ("x", "y", "z")
SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
GPT2 = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 2, "pad_token_id": 0, "eos_token_id": 2}
BART = {
    "vocab_size": 99,
    "d_model": 32,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    **{f"{side}_layers": 2 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 64 for side in ("encoder", "decoder")},
}
T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "eos_token_id": 2}
CONFIGS = {
    "bert": SIZES,
    "roberta": SIZES,
    "distilbert": {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "electra": SIZES | {"embedding_size": 16},
    "deberta-v2": SIZES | {"pos_att_type": ["p2c", "c2p"], "relative_attention": True, "pooler_hidden_size": 32},
    "albert": SIZES | {"embedding_size": 16},
    "modernbert": SIZES | {"cls_token_id": 1, "sep_token_id": 2},
    "longformer": SIZES | {"attention_window": 4},
    "xlnet": {"vocab_size": 99, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64},
    "gpt2": GPT2,
    "llama": SIZES | {"num_key_value_heads": 2},
    "qwen3": SIZES | {"num_key_value_heads": 2, "head_dim": 16},
    "bart": BART,
    "t5": T5 | {"decoder_start_token_id": 0},
    "funnel": {"vocab_size": 99, "d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64, "block_sizes": [1, 1]},
}
HEADS = {
    "AutoModelForSequenceClassification": SequenceClassification,
    "AutoModelForTokenClassification": TokenClassification,
}


def pairs():
    for name, sizes in CONFIGS.items():
        config = AutoConfig.for_model(name, **sizes)
        for auto_class in HEADS:
            if type(config) in getattr(transformers, auto_class)._model_mapping:
                yield pytest.param(auto_class, config, id=f"{name}-{auto_class.removeprefix('AutoModelFor')}")


def a_batch():
    torch.manual_seed(1)
    ids = torch.randint(5, 90, (3, 8))
    ids[:, -1] = 2
    mask = torch.ones_like(ids)
    mask[1, -3:] = 0
    ids[1, -3:] = 0
    ids[1, -4] = 2
    return {"input_ids": ids, "attention_mask": mask}


def labels_for(auto_class, ids):
    shape = ids.shape[:1] if "Sequence" in auto_class else ids.shape
    labels = torch.arange(shape.numel()).view(shape) % len(LABELS)
    return labels if len(shape) == 1 else labels.masked_fill(ids == 0, -100)


@pytest.mark.parametrize(("auto_class", "config"), pairs())
def test_equal_to_stock_in_logits_loss_gradients_and_out_again(auto_class, config, tmp_path):
    torch.manual_seed(0)
    backbone = Backbone.from_config(config)
    head = HEADS[auto_class]()
    head.attach(HeadContext(backbone, LABELS))
    scorer = head.scorer
    assert isinstance(scorer, NativeModel)
    scorer.whole(backbone).save_pretrained(tmp_path)
    stock, info = task_class(auto_class, config).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert stock.config.id2label == dict(enumerate(LABELS))

    batch = a_batch()
    labels = labels_for(auto_class, batch["input_ids"])
    backbone.eval()
    head.eval()
    call = head.request(batch)
    ours = head(None if call is None else backbone.run(call), batch)
    theirs = stock.eval()(**batch, labels=labels)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-5, atol=1e-6)
    loss = head.loss(ours, labels)
    torch.testing.assert_close(loss, theirs.loss, rtol=1e-5, atol=1e-6)

    loss.backward()
    theirs.loss.backward()
    grads = {name: p.grad for name, p in stock.named_parameters() if p.grad is not None}
    mine = {name: p.grad for name, p in head.scorer.task.named_parameters() if p.grad is not None}
    for part in scorer.parts:
        shared = backbone.model.get_submodule(part.backbone_path)
        mine |= {f"{part.task_path}.{name}": p.grad for name, p in shared.named_parameters() if p.grad is not None}
    for name, grad in grads.items():
        torch.testing.assert_close(
            mine[name], grad, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_fresh_heads_start_as_stock_ones_do(kind):
    config = AutoConfig.for_model(kind, **CONFIGS[kind] | {"hidden_size": 512, "initializer_range": 0.05})
    backbone = Backbone.from_config(config)
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    scorer = NativeModel("AutoModelForSequenceClassification", backbone, num_labels=64)
    weights = [p for p in scorer.parameters() if p.dim() == 2]
    assert weights and all(abs(p.std().item() - 0.05) < 0.005 for p in weights)
    assert all(not p.any() for p in scorer.parameters() if p.dim() == 1)
    assert all(torch.equal(value, before[key]) for key, value in backbone.model.state_dict().items())


def test_an_architecture_without_the_task_says_what_to_set():
    config = AutoConfig.for_model("gptj", n_embd=32, n_layer=1, n_head=2, rotary_dim=4)
    backbone = Backbone.from_config(config)
    with pytest.raises(HeadsetError, match=r"no AutoModelForTokenClassification for .* 'gptj'.*native: false"):
        TokenClassification().attach(HeadContext(backbone, LABELS))
