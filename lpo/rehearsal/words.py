"""Tokenizers and picture settings of published layouts. Captions of the rehearsal are words of the emoji grammar."""

from __future__ import annotations

import json
import string
from pathlib import Path

from transformers import BertTokenizer, CLIPImageProcessorPil, CLIPTokenizer, Qwen2Tokenizer, T5TokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lpo.emoji.vocabulary import make_tokenizer, words
from lpo.errors import LpoError

QWEN_CHAT = (  # of Qwen3: what its template makes of messages without tools
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def clip_tokenizer(folder: Path, size: int, length: int) -> None:
    """Start and end of text are the last two tokens, as in CLIP's vocabulary of 49408; what is left over is never used.

    Raises:
        LpoError: if the vocabulary is too small for the captions.
    """
    model = json.loads(make_tokenizer().backend_tokenizer.to_str())["model"]
    tokens = [token for token in model["vocab"] if not token.startswith("<|")]
    tokens = sorted(tokens, key=model["vocab"].get)
    if size < len(tokens) + 2:
        what = f"a vocabulary of {size} tokens is too small to rehearse with; {len(tokens) + 2} are needed"
        raise LpoError(what, str(folder), "name a model with a larger vocabulary")
    unused = [f"<|unused{i}|></w>" for i in range(size - 2 - len(tokens))]
    vocabulary = [*tokens, *unused, "<|startoftext|>", "<|endoftext|>"]
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    ids = {token: i for i, token in enumerate(vocabulary)}
    CLIPTokenizer(vocab=ids, merges=merges, model_max_length=length).save_pretrained(folder)


def t5_tokenizer(folder: Path) -> None:
    """Words and letters; its vocabulary is smaller than T5's embedding, as the published one is too."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", "▁Yes", *("▁" + word for word in words()), *string.printable.strip()]
    vocabulary = [(piece, -float(piece == "▁") - 1) for piece in dict.fromkeys(pieces)]
    T5TokenizerFast(vocab=vocabulary, extra_ids=0).save_pretrained(folder)


def qwen_tokenizer(folder: Path) -> None:
    """One token a byte, the end of text, which also pads, and the marks of a chat.

    Its vocabulary is smaller than the embedding of the text encoder, as the published one is too.
    """
    vocabulary = [*bytes_to_unicode().values(), "<|endoftext|>"]
    tokenizer = Qwen2Tokenizer(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = QWEN_CHAT
    tokenizer.save_pretrained(folder)


def bert_tokenizer(folder: Path) -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    BertTokenizer(vocab={word: i for i, word in enumerate([*special, *words()])}).save_pretrained(folder)


def pictures(folder: Path, side: int) -> None:
    """How a CLIP of this size reads pictures."""
    size = {"height": side, "width": side}
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=size).save_pretrained(folder)
