"""What params.yaml leaves open of the data contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lpo.config import Dataset, Filter
from lpo.data.tokens import Tokens, token_counter


@dataclass(frozen=True)
class Limits:
    """tokens: of the model that is trained; cut: whether captions that it reads in part are good (training cuts them);
    must_differ: whether are_different must be true."""

    tokens: Tokens
    cut: bool
    must_differ: bool

    @property
    def too_long(self) -> str:
        """The reason of a caption that is too long."""
        return f"the caption has more than {self.tokens.limit} tokens"

    def remedy(self, counts: Mapping[str, int]) -> str:
        """What to do about too many bad rows, given their numbers by reason."""
        text = "correct these pairs, or raise filter.max_quarantined in params.yaml to leave them out"
        if self.too_long not in counts:
            return text
        cut = "filter.long_captions: cut keeps captions that are read in part"
        return f"{text}; {cut}. The model is {self.tokens.model}"


def limits_of(model: str, config: Filter, dataset: Dataset) -> Limits:
    """The limits for a model, a folder or a hub id. Raises LpoError if it has no tokenizer."""
    tokens = token_counter(model, config.max_tokens)
    return Limits(tokens, config.long_captions == "cut", dataset.are_different == "required")
