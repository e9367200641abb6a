"""How many passes of the backbone the text heads of an architecture need together."""

import torch

from backbones import Backbone
from backbones.calls import merge_calls
from heads.native import NativeModel
from tests.sweep.architectures import tiny_config
from tests.sweep.batches import a_batch
from tests.sweep.check import quiet

TEXT_TASKS = (
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForMaskedLM",
)


def check_sharing(model_type: str, tasks: list[str]) -> str:
    """How many passes native heads for these tasks need on one backbone, for one batch."""
    quiet()
    try:
        backbone = Backbone.from_config(tiny_config(model_type)).eval()
    except ImportError:
        return "not installed"
    heads = {task: NativeModel(task, backbone) for task in tasks}
    batch = a_batch(tasks[0], heads[tasks[0]].task)
    with torch.no_grad():
        requests = {task: head.request(batch) for task, head in heads.items()}
    calls = {task: call for task, call in requests.items() if call is not None}
    groups = [names for _, names in merge_calls(calls)] + [[task] for task in tasks if task not in calls]
    if len(groups) == 1:
        return "one pass"
    return "; ".join(" and ".join(name.removeprefix("AutoModelFor") for name in names) for names in groups)
