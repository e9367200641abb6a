"""Masked tokens, found again from the text around them: how a backbone learns the language of a domain."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection
from transformers import PreTrainedTokenizerBase
from transformers.utils.generic import ModelOutput

from backbones.backbone import Backbone, BackboneSpec
from backbones.calls import BackboneCall
from backbones.errors import HeadsetError
from heads.base import Head, HeadContext, HeadOutput, attention_mask
from heads.masking import fixed_draws, mask_tokens, word_starts
from heads.native import NativeModel
from heads.outputs import head_output, stock_loss
from heads.targets import IGNORE
from heads.token_metrics import Perplexity, TokenAccuracy

__all__ = ["MaskedLM"]


class MaskedLM(Head):
    """Texts to the words that are missing in them: domain adaptation, learnt from texts without labels.

    It makes its own task of a text: some tokens are masked, and have to be found again (`heads.masking`). In training
    they are others each time; in evaluation a text is always masked in the same way, so that numbers can be compared.
    The scores come from the very modules that ``AutoModelForMaskedLM`` has for the architecture.

    Args:
        mlm_probability: The share of tokens to mask.
        whole_words: Mask all tokens of a word, or none.
        top_k: How many tokens are predicted for a mask token in a text.

    Raises:
        HeadsetError: An argument is out of range.

    Example:
        >>> MaskedLM(whole_words=True).spec()["init_args"]
        {'mlm_probability': 0.15, 'whole_words': True, 'top_k': 5}
    """

    learns_in_parts = True
    known_tokenizer: PreTrainedTokenizerBase | None = None

    def __init__(self, mlm_probability: float = 0.15, whole_words: bool = False, top_k: int = 5) -> None:
        super().__init__()
        if not 0 < mlm_probability < 1:
            raise HeadsetError(f"Invalid mlm_probability: {mlm_probability}. Give a share between 0 and 1.")
        if top_k < 1:
            raise HeadsetError(f"Invalid top_k: {top_k}. Give a number of at least 1.")
        self.mlm_probability = mlm_probability
        self.whole_words = whole_words
        self.top_k = top_k

    @property
    def auto_class(self) -> str:
        """The task in transformers."""
        return "AutoModelForMaskedLM"

    @property
    def needs_word_ids(self) -> bool:
        """Whole words have to be known."""
        return self.whole_words

    def build(self, context: HeadContext) -> None:
        """Take the modules of transformers, and check that the tokenizer fits."""
        self.scorer = NativeModel(self.auto_class, context.backbone)
        self.known_tokenizer = context.tokenizer
        if context.tokenizer is not None:
            _check_tokenizer(context.tokenizer, context.spec)

    def unused(self, backbone: Backbone) -> set[str]:
        """What the scorer does without."""
        return self.scorer.unused(backbone)

    def target(self) -> None:
        """Texts are their own labels."""

    def prepare(self, batch: Mapping[str, Any], labels: Any) -> tuple[Mapping[str, Any], Tensor]:
        """A copy of the batch with tokens masked, and the tokens that were ``(B, T)``, -100 elsewhere.

        Special tokens and padding are never masked. A batch for training has at least one masked token.

        Raises:
            HeadsetError: There is no tokenizer, or no word ids where whole words are to be masked.
        """
        tokenizer, ids = self.tokenizer, batch["input_ids"]
        special = torch.tensor(tokenizer.all_special_ids, device=ids.device)
        real = attention_mask(batch, ids) & ~torch.isin(ids, special)
        draws = torch.rand(3, *ids.shape, device=ids.device) if self.training else fixed_draws(ids, real)
        if self.whole_words:
            draws[0] = draws[0].gather(-1, word_starts(_word_ids(batch)))
        chance = draws[0].masked_fill(~real, 2.0)
        least = chance.amin().clamp(max=1.0) if self.training else 0.0
        masked = (chance < self.mlm_probability) | (chance == least)
        changed = mask_tokens(ids, masked, draws[1:], _mask_id(tokenizer), len(tokenizer))
        return {**batch, "input_ids": changed}, ids.masked_fill(~masked, IGNORE)

    def request(self, batch: Mapping[str, Any]) -> BackboneCall | None:
        """The scorer's own call."""
        return self.scorer.request(batch)

    def forward(self, features: ModelOutput, batch: Mapping[str, Any]) -> HeadOutput:
        """Scores ``(B, T, V)`` of all V tokens; ``info["input_ids"]`` ``(B, T)`` says where mask tokens are."""
        output = head_output(self.scorer(features, batch), batch)
        return HeadOutput(output.logits, output.info | {"input_ids": batch.get("input_ids")})

    def loss(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """Cross entropy over the masked tokens; 0 where none is.

        Args:
            output: Scores ``(B, T, V)``.
            labels: The tokens that were masked ``(B, T)``, -100 elsewhere.
        """
        if not (labels != IGNORE).any():
            return output.logits.sum() * 0.0
        known = stock_loss(output, labels)
        if known is not None:
            return known
        return F.cross_entropy(output.logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)

    def loss_size(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """The number of masked tokens."""
        return (labels != IGNORE).sum()

    def predict(self, output: HeadOutput) -> list[dict[str, Any]]:
        """``{"masks"}``: for each mask token in a text the best tokens, as transformers' ``fill-mask`` gives them.

        Each is ``{"score", "token", "token_str", "sequence"}``: its probability, its id, itself, and the text with it.
        """
        return [{"masks": self._fill(*row)} for row in zip(output.info["input_ids"], output.logits, strict=True)]

    def metrics(self) -> MetricCollection:
        """Accuracy and perplexity over the masked tokens."""
        return MetricCollection({"accuracy": TokenAccuracy(), "perplexity": Perplexity()})

    def metric_inputs(self, output: HeadOutput, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``(N, V)`` at the N masked tokens, and those tokens ``(N,)``."""
        masked = labels != IGNORE
        return output.logits[masked].float(), labels[masked]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer.

        Raises:
            HeadsetError: There is none.
        """
        if self.known_tokenizer is None:
            raise HeadsetError(
                "MaskedLM needs the tokenizer, to mask tokens and to name them: "
                "Headset(..., tokenizer=AutoTokenizer.from_pretrained(...))."
            )
        return self.known_tokenizer

    def _fill(self, ids: Tensor, logits: Tensor) -> list[list[dict[str, Any]]]:
        """The best tokens for each mask token of one text."""
        tokenizer = self.tokenizer
        places = (ids == _mask_id(tokenizer)).nonzero().flatten()
        scores, tokens = logits[places].float().softmax(-1).topk(min(self.top_k, logits.shape[-1]))
        padding = tokenizer.pad_token_id

        def filled(place: int, token: int) -> str:
            text = [token if index == place else known for index, known in enumerate(ids.tolist())]
            kept = [known for known in text if known != padding]
            return str(tokenizer.decode(kept, skip_special_tokens=len(places) == 1))

        def answer(place: int, score: float, token: int) -> dict[str, Any]:
            word = str(tokenizer.decode([token]))
            return {"score": score, "token": token, "token_str": word, "sequence": filled(place, token)}

        best = zip(places.tolist(), scores.tolist(), tokens.tolist(), strict=True)
        return [[answer(place, *one) for one in zip(*found, strict=True)] for place, *found in best]


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, spec: BackboneSpec) -> None:
    """Check that there is a mask token, and that the model knows every token.

    Raises:
        HeadsetError: It is not so.
    """
    kind = type(tokenizer).__name__
    if tokenizer.mask_token_id is None:
        raise HeadsetError(
            f"The tokenizer of this '{spec.model_type}' model ({kind}) has no mask token, which MaskedLM needs. "
            "Take a model that was made for it, or give its tokenizer a mask_token."
        )
    if 0 < spec.vocab_size < len(tokenizer):
        raise HeadsetError(
            f"The tokenizer ({kind}) has {len(tokenizer)} tokens, and the '{spec.model_type}' model knows "
            f"{spec.vocab_size}: they do not belong together."
        )


def _mask_id(tokenizer: PreTrainedTokenizerBase) -> int:
    found: int = tokenizer.mask_token_id
    return found


def _word_ids(batch: Mapping[str, Any]) -> Tensor:
    found: Tensor | None = batch.get("meta", {}).get("word_ids")
    if found is None:
        raise HeadsetError('whole_words needs the word of each token: batch["meta"]["word_ids"], (B, T), -1 for none.')
    return found
