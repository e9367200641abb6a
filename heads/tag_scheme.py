"""Which tags may follow each other: the schemes IOB2, IOBES and BILOU, as far as a label set has their tags."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.entities import BILOU, is_bio

__all__ = ["TagScheme"]

# Which tag stands for a word, by whether it begins its entity and whether it ends it; the first one that the set has.
CHOICES = {(True, True): "SBIE", (True, False): "BISE", (False, True): "EIBS", (False, False): "IEBS"}


class TagScheme(nn.Module):
    """What a label set says of the order of its tags.

    A tag is known by its prefix, by its type, and by whether it may begin or end an entity. In a set without E-X and
    S-X, B-X may end one too; in a set without B-X, as IOB1 may have it, I-X may begin one. Tags that are no entities
    may stand anywhere.

    Args:
        labels: C tags, in the order of the head's outputs.
    """

    illegal: Tensor
    illegal_start: Tensor
    illegal_end: Tensor
    begins: Tensor
    choices: Tensor
    outside: Tensor

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__()
        size = len(labels)
        self.constrained = is_bio(labels)
        tags = [_parts(label) for label in labels] if self.constrained else [("O", "")] * size
        begins = torch.tensor([[_begins(before, tag) for tag in tags] for before in [("O", ""), *tags]])
        choices, may = torch.arange(size).repeat(2, 2, 1), torch.zeros(2, 2, size, dtype=torch.bool)
        for index, (prefix, kind) in enumerate(tags):
            for (first, last), order in CHOICES.items() if prefix != "O" else ():
                found = next(tags.index((one, kind)) for one in order if (one, kind) in tags)
                choices[int(first), int(last), index] = found
                may[int(first), int(last), found] = True
        outside = torch.tensor([prefix == "O" for prefix, _ in tags])
        can_begin, can_end = may.any(1) | outside, may.any(0) | outside  # (2, C), by whether it does
        ends = begins[1:] | outside  # a tag ends its entity, if there is one, before a tag that begins one or is none
        after = can_begin.gather(0, begins.long())
        legal = after[1:] & can_end.gather(0, ends.long().T).T
        buffers = {
            "illegal": ~legal,
            "illegal_start": ~after[0],
            "illegal_end": ~can_end[1],
            "begins": begins,
            "choices": choices,
            "outside": outside,
        }
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)

    def legalised(self, tags: Tensor, mask: Tensor) -> Tensor:
        """The same entities in legal tags: what is read as one (an I-X after O) is written as the scheme has it.

        Args:
            tags: Numbers of tags ``(B, W)``.
            mask: Which of them are words, bool ``(B, W)``: the first ones of each row.

        Returns:
            Tags ``(B, W)``; where the set lacks a tag, they may still not be legal.
        """
        if not self.constrained:
            return tags
        begins = self.begins[F.pad(tags[:, :-1] + 1, (1, 0)), tags]
        outside = self.outside[tags] | ~mask
        ends = F.pad((begins | outside)[:, 1:], (0, 1), value=True)
        return self.choices[begins.long(), ends.long(), tags]

    def is_legal(self, tags: Tensor, mask: Tensor) -> Tensor:
        """Whether the words' tags ``(B, W)`` are in a legal order, bool ``(B,)``."""
        last = (mask.sum(1, keepdim=True) - 1).clamp(min=0)
        wrong = self.illegal_start[tags[:, 0]] | self.illegal_end[tags.gather(1, last)[:, 0]]
        steps = self.illegal[tags[:, :-1], tags[:, 1:]] & mask[:, 1:]
        return ~((wrong & mask[:, 0]) | steps.any(1))


def _parts(label: str) -> tuple[str, str]:
    """A tag as prefix, one of ``OBIES``, and type."""
    return BILOU.get(label[0], label[0]), "" if label == "O" else label[2:] or "_"


def _begins(before: tuple[str, str], tag: tuple[str, str]) -> bool:
    """Whether a tag begins an entity, as `heads.entities.entities` reads it."""
    if tag[0] == "O":
        return False
    return before[0] in "OES" or tag[0] in "BS" or before[1] != tag[1]
