"""A linear-chain conditional random field: scores of whole tag sequences."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from heads.tag_scheme import TagScheme

__all__ = ["CRF"]

NEVER = -1e30  # in the place of minus infinity, whose gradient is not finite where all ways are closed


class CRF(nn.Module):
    """Scores of tag sequences: emissions of each word, and a learned score for each tag after another.

    Lafferty, McCallum and Pereira 2001, as Lample et al. 2016 put it on a neural tagger. Only sequences that are legal
    in the tags' scheme have a probability. Everything is computed in float32, one step a word for all rows together.

    All methods take emissions ``(B, W, C)`` and a mask ``(B, W)``, whose words are the first ones of each row.

    Args:
        labels: C tags, in the order of the emissions.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__()
        size = len(labels)
        self.scheme = TagScheme(labels)
        # Zeros: it starts as a tagger without transitions.
        self.start = nn.Parameter(torch.zeros(size))
        self.transitions = nn.Parameter(torch.zeros(size, size))  # from a row's tag to a column's
        self.end = nn.Parameter(torch.zeros(size))

    def scores(self) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of first tags ``(C,)``, steps ``(C, C)`` and last tags ``(C,)`` in float32, low where illegal."""
        scheme = self.scheme
        parts = (self.start, scheme.illegal_start), (self.transitions, scheme.illegal), (self.end, scheme.illegal_end)
        start, steps, end = (part.float().masked_fill(illegal, NEVER) for part, illegal in parts)
        return start, steps, end

    def log_likelihood(self, emissions: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
        """The log probability of legal tags ``(B, W)``, as ``(B,)``; 0 for a row without words."""
        emissions, (start, steps, end) = emissions.float(), self.scores()
        last = (mask.sum(1, keepdim=True) - 1).clamp(min=0)
        words = emissions.gather(2, tags.unsqueeze(2)).squeeze(2) * mask
        score = words.sum(1) + start[tags[:, 0]] + end[tags.gather(1, last)[:, 0]]
        score = score + (steps[tags[:, :-1], tags[:, 1:]] * mask[:, 1:]).sum(1)
        total = (self._forward(emissions, mask, start, steps)[:, -1] + end).logsumexp(1)
        return (score - total).masked_fill(~mask[:, 0], 0.0)

    def decode(self, emissions: Tensor, mask: Tensor) -> Tensor:
        """The most probable legal tags ``(B, W)`` (Viterbi); 0 at what is no word."""
        emissions, (start, steps, end) = emissions.float(), self.scores()
        best, before = start + emissions[:, 0], []
        for position in range(1, emissions.shape[1]):
            score, tag = (best.unsqueeze(2) + steps).max(1)
            best = torch.where(mask[:, position, None], score + emissions[:, position], best)
            before.append(tag)
        tag = (best + end).argmax(1)
        tags = [tag]
        for position in range(emissions.shape[1] - 1, 0, -1):
            earlier = before[position - 1].gather(1, tag.unsqueeze(1)).squeeze(1)
            tag = torch.where(mask[:, position], earlier, tag)
            tags.append(tag)
        return torch.stack(tags[::-1], 1) * mask

    def marginals(self, emissions: Tensor, mask: Tensor) -> Tensor:
        """The probability of each tag of each word, over all sequences: ``(B, W, C)`` (forward-backward)."""
        emissions, (start, steps, end) = emissions.float(), self.scores()
        forward = self._forward(emissions, mask, start, steps)
        after = end.expand(len(emissions), -1)
        backward = [after]
        for position in range(emissions.shape[1] - 1, 0, -1):
            score = (steps + (emissions[:, position] + after).unsqueeze(1)).logsumexp(2)
            after = torch.where(mask[:, position, None], score, after)
            backward.append(after)
        return (forward + torch.stack(backward[::-1], 1)).softmax(2)

    def _forward(self, emissions: Tensor, mask: Tensor, start: Tensor, steps: Tensor) -> Tensor:
        """For each word and tag the log of the summed scores of all ways there ``(B, W, C)``."""
        score = start + emissions[:, 0]
        scores = [score]
        for position in range(1, emissions.shape[1]):
            step = (score.unsqueeze(2) + steps).logsumexp(1) + emissions[:, position]
            score = torch.where(mask[:, position, None], step, score)
            scores.append(score)
        return torch.stack(scores, 1)
