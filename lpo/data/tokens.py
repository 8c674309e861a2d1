"""The lengths of captions in tokens, counted by the model's own tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers import AutoTokenizer, CLIPTokenizer
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from lpo.emoji.vocabulary import make_tokenizer
from lpo.errors import LpoError


@dataclass(frozen=True)
class Tokens:
    """count: captions -> their lengths in tokens, uncut, with start and end of text; limit: the longest that is read.

    `model` says for a message which model this is.
    """

    count: Callable[[list[str]], list[int]]
    limit: int
    model: str


def token_counter(model: str, max_tokens: int) -> Tokens:
    """The counter of a model's folder or hub id. The limit is its tokenizer's, or `max_tokens` if that is lower.

    Raises:
        LpoError: if the model has no tokenizer.
    """
    where = f"{model}/tokenizer"
    try:
        name = get_tokenizer_config(model, subfolder="tokenizer").get("tokenizer_class") or "CLIPTokenizer"
        cls = CLIPTokenizer if name.startswith("CLIPTokenizer") else AutoTokenizer
        tokenizer = cls.from_pretrained(model, subfolder="tokenizer")
    except (OSError, ValueError) as error:
        raise LpoError(f"no tokenizer here: {error}", where, "run `lpo base`, or correct model.path") from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes, in silence, of an absent folder
        raise LpoError("the tokenizer has no words", where, "run `lpo base`, or correct model.path")

    def count(captions: list[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(captions, verbose=False).input_ids] if captions else []

    limit = min(max_tokens, tokenizer.model_max_length)
    name = f"{model}, which reads {limit} tokens"
    if tokenizer.get_vocab() == make_tokenizer().get_vocab():
        name += " of emoji scenes; captions of photographs need another model, such as `lpo preset sd15` sets up"
    return Tokens(count, limit, name)
