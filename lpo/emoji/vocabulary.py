"""A CLIPTokenizer for the grammar: its merges make every word of it one token; other words fall to letters."""

from __future__ import annotations

from transformers import CLIPTokenizer

from lpo.emoji.scenes import BACKGROUNDS, NUMBERS, PLURALS, RELATIONS
from lpo.emoji.sprites import NAMES, OBJECTS

LENGTH = 16  # tokens, with start and end


def words() -> list[str]:
    """Every word that a caption can hold, sorted."""
    phrases = [*NAMES, *BACKGROUNDS, *RELATIONS, *NUMBERS, *(PLURALS.get(o, o + "s") for o in OBJECTS), "a an and"]
    return sorted({word for phrase in phrases for word in phrase.split()})


def make_tokenizer() -> CLIPTokenizer:
    """Letters, letters that end a word, the grammar's words, start and end of text."""
    letters = [chr(c) for c in range(33, 127)]
    tokens = letters + [letter + "</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in words():
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            # from the end, so that no merge of one word applies inside another before its last letters match
            pair = (parts[-2], parts[-1])
            if pair not in merges:
                merges.append(pair)
                tokens.append("".join(pair))
            parts[-2:] = ["".join(pair)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)
