"""Targets: how the labels in a table become the tensor that a head learns from; all that are built in."""

from heads.class_targets import ClassTarget, MultiLabelTarget, SoftTarget
from heads.number_targets import NumberTarget, PairTarget
from heads.tag_target import TagTarget
from heads.target import IGNORE, Target, pad_rows

__all__ = [
    "IGNORE",
    "ClassTarget",
    "MultiLabelTarget",
    "NumberTarget",
    "PairTarget",
    "SoftTarget",
    "TagTarget",
    "Target",
    "pad_rows",
]
