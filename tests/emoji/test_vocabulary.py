from lpo.emoji.scenes import prompts_of
from lpo.emoji.vocabulary import make_tokenizer, words


def test_every_word_is_one_token_and_every_caption_fits():
    tokenizer = make_tokenizer()
    assert all(len(tokenizer(word).input_ids) == 3 for word in words())
    captions = [p.caption for pool in prompts_of("train").values() for p in pool[:200]]
    lengths = [len(tokenizer(caption).input_ids) for caption in captions]
    assert max(lengths) <= tokenizer.model_max_length
    assert all(n == len(caption.split()) + 2 for n, caption in zip(lengths, captions, strict=True))


def test_words_outside_the_grammar_fall_to_letters():
    tokenizer = make_tokenizer()
    assert tokenizer.unk_token_id not in tokenizer("a zebra").input_ids[1:-1]


def test_it_survives_saving(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    caption = "three foxes under water"
    assert again(caption).input_ids == tokenizer(caption).input_ids
    assert again.model_max_length == tokenizer.model_max_length
