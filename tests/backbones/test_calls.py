"""Calls of several heads become as few passes as possible."""

import torch

from backbones.calls import BackboneCall, merge_calls


def test_calls_with_the_same_tensors_share_a_pass_and_further_outputs_are_joined():
    ids, mask = torch.ones(2, 3), torch.ones(2, 3)
    calls = {
        "a": BackboneCall({"input_ids": ids, "attention_mask": mask}),
        "b": BackboneCall({"attention_mask": mask, "input_ids": ids, "output_hidden_states": True}),
        "c": BackboneCall({"input_ids": ids, "attention_mask": mask, "return_dict": True}),
    }
    [(call, names)] = merge_calls(calls)
    assert names == ["a", "b", "c"]
    assert call.kwargs["output_hidden_states"] is True
    assert call.kwargs["input_ids"] is ids


def test_calls_that_differ_do_not_share():
    ids = torch.ones(2, 3)
    different = {
        "plain": BackboneCall({"input_ids": ids}),
        "other tensor": BackboneCall({"input_ids": ids.clone()}),
        "other part": BackboneCall({"input_ids": ids}, path="encoder"),
        "other setting": BackboneCall({"input_ids": ids, "use_cache": False}),
        "list": BackboneCall({"input_ids": ids, "shape": [1, 2]}),
        "other list": BackboneCall({"input_ids": ids, "shape": [1, 3]}),
    }
    assert [names for _, names in merge_calls(different)] == [[name] for name in different]
