"""PickScore, HPS and ImageReward in the published layouts, against their formulas written out."""

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.judge_folders import clip_folder, hps_folder, imagereward_folder
from support.published_judges import VIT_H_14, OpenClip, photo
from transformers import BertTokenizer, CLIPModel

from lpo.emoji.vocabulary import make_tokenizer
from lpo.errors import LpoError
from lpo.scorers import hps, imagereward, pickscore

CPU = torch.device("cpu")
PROMPTS = ["a cat at night", "two dogs", "a red heart above a taxi"]
PHOTOS = [photo(seed) for seed in range(3)]
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


def square_pixels(size: int) -> torch.Tensor:
    """What a processor makes of pictures that have the right size already."""
    pictures = [np.asarray(photo(seed, size, size), dtype=np.float32) / 255 for seed in range(3)]
    return torch.stack([((torch.from_numpy(p) - MEAN) / STD).permute(2, 0, 1) for p in pictures])


def ids(prompts: list[str]) -> torch.Tensor:
    return make_tokenizer()(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids


@torch.no_grad()
def test_pickscore_is_the_scaled_cosine(tmp_path):
    folder = str(clip_folder(tmp_path / "clip"))
    found = pickscore.load(folder, folder, CPU).score([photo(seed, 28, 28) for seed in range(3)], PROMPTS)
    output = CLIPModel.from_pretrained(folder)(input_ids=ids(PROMPTS), pixel_values=square_pixels(28))
    cosine = F.cosine_similarity(output.image_embeds, output.text_embeds)
    torch.testing.assert_close(found, np.exp(3.0) * cosine, rtol=1e-4, atol=1e-4)
    assert found.dtype == torch.float32 and found.std() > 0.01


@torch.no_grad()
def test_hps_scores_as_open_clip_does_with_the_same_weights(tmp_path):
    published = hps_folder(tmp_path / "hps")
    words = str(clip_folder(tmp_path / "clip"))
    judge = hps.load("hps_v2", str(tmp_path / "hps"), words, CPU)
    found = judge.score([photo(seed, 28, 28) for seed in range(3)], PROMPTS)
    visual, text = published.visual(square_pixels(28)), published.encode_text(ids(PROMPTS))
    torch.testing.assert_close(found, 100 * F.cosine_similarity(visual, text), rtol=1e-4, atol=1e-3)
    assert found.std() > 0.1
    other = hps.load("hps_v2_1", str(tmp_path / "hps"), words, CPU).score(PHOTOS, PROMPTS)
    assert not torch.allclose(other, judge.score(PHOTOS, PROMPTS))  # each version reads its own file


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("A &amp;amp; B", "a & b"), ("caf\u00c3\u00a9", "caf\u00e9"), ("  two \n\t Dogs ", "two dogs"),
        ("\u201cquoted\u201d", '"quoted"'), ("x &lt;b&gt;", "x <b>"), ("full\uff37idth", "fullwidth"),
    ],
)  # fmt: skip
def test_hps_reads_prompts_as_open_clip_cleans_them(prompt, read, tmp_path):
    assert hps.cleaned(prompt) == read
    hps_folder(tmp_path / "hps")
    judge = hps.load("hps_v2", str(tmp_path / "hps"), str(clip_folder(tmp_path / "clip")), CPU)
    torch.testing.assert_close(judge.score(PHOTOS[:1], ["A  CAT \u00a0"]), judge.score(PHOTOS[:1], ["a cat"]))


def test_hps_at_full_size_is_vit_h_14():
    """On the meta device: every name and shape of CLIPModel is filled, and nothing is left over."""
    with torch.device("meta"):
        published = OpenClip(49408, 77, **VIT_H_14).state_dict() | {"attn_mask": torch.empty(77, 77)}
        model = CLIPModel(hps.clip_config(published, make_tokenizer()))
    found = {name: value.shape for name, value in hps.clip_weights(published).items()}
    assert found == {name: value.shape for name, value in model.state_dict().items()}
    assert sum(value.numel() for value in model.parameters()) == 986_109_441  # as OpenCLIP counts it
    assert model.config.vision_config.num_attention_heads == model.config.text_config.num_attention_heads == 16
    assert model.config.vision_config.image_size == 224


def test_hps_pads_what_is_not_square_with_black():
    """224 x 112: the longer side to 28, and 7 black columns left and right."""
    found = hps.pixels(photo(0, 112, 224), 28)
    black = (-MEAN / STD)[:, None, None]
    assert found.shape == (3, 28, 28)
    torch.testing.assert_close(found[:, :, :7], black.expand(3, 28, 7))
    torch.testing.assert_close(found[:, :, 21:], black.expand(3, 28, 7))
    assert (found[:, :, 7:21].mean((1, 2)) > black[:, 0, 0] + 0.5).all()


@torch.no_grad()
def test_imagereward_scores_as_published_with_the_same_weights(tmp_path):
    published = imagereward_folder(tmp_path)
    prompts = ["a photo of a cat", "two red dog", "a red cat " * 20]  # the last is cut at 35 tokens
    judge = imagereward.load(str(tmp_path), str(tmp_path), CPU)
    found = judge.score([photo(seed, 32, 32) for seed in range(3)], prompts)
    words = BertTokenizer.from_pretrained(tmp_path)(
        prompts, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )
    expected = published(square_pixels(32), words.input_ids, words.attention_mask)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert words.input_ids.shape == (3, 35) and expected.std() > 0.01


def test_imagereward_reads_the_middle_square_of_a_wide_picture(tmp_path):
    """64 x 32 with a red left, a green middle and a blue right: only green is left of it."""
    imagereward_folder(tmp_path)
    judge = imagereward.load(str(tmp_path), str(tmp_path), CPU)
    wide = Image.new("RGB", (64, 32), "lime")
    wide.paste("red", (0, 0, 16, 32))
    wide.paste("blue", (48, 0, 64, 32))
    square = Image.new("RGB", (32, 32), "lime")
    torch.testing.assert_close(judge.pixels([wide]), judge.pixels([square]))


def test_a_batch_scores_as_its_rows_do(tmp_path):
    folder = str(clip_folder(tmp_path / "clip"))
    imagereward_folder(tmp_path / "ir")
    hps_folder(tmp_path / "hps")
    for judge in (
        pickscore.load(folder, folder, CPU),
        hps.load("hps_v2", str(tmp_path / "hps"), folder, CPU),
        imagereward.load(str(tmp_path / "ir"), str(tmp_path / "ir"), CPU),
    ):
        alone = torch.cat([judge.score([p], [c]) for p, c in zip(PHOTOS, PROMPTS, strict=True)])
        torch.testing.assert_close(judge.score(PHOTOS, PROMPTS), alone, rtol=1e-4, atol=1e-4)


def test_long_and_odd_prompts_are_cut_not_refused(tmp_path):
    folder = str(clip_folder(tmp_path / "clip"))
    imagereward_folder(tmp_path / "ir")
    long = ["a cat " * 2000, "", "\x00 猫 <script>"]
    for judge in (
        pickscore.load(folder, folder, CPU), imagereward.load(str(tmp_path / "ir"), str(tmp_path / "ir"), CPU)
    ):  # fmt: skip
        assert torch.isfinite(judge.score(PHOTOS, long)).all()


class Payload:
    def __reduce__(self):
        return (print, ("this ran",))


def test_a_pickle_that_runs_code_is_refused(tmp_path, capsys):
    words = str(clip_folder(tmp_path / "clip"))
    hps_folder(tmp_path / "hps")
    imagereward_folder(tmp_path / "ir")
    for path in (tmp_path / "hps/HPS_v2_compressed.pt", tmp_path / "ir/ImageReward.pt"):
        torch.save({"state_dict": Payload()}, path)
    with pytest.raises(LpoError, match="no weights can be read"):
        hps.load("hps_v2", str(tmp_path / "hps"), words, CPU)
    with pytest.raises(LpoError, match="no weights can be read"):
        imagereward.load(str(tmp_path / "ir"), str(tmp_path / "ir"), CPU)
    (tmp_path / "ir/ImageReward.pt").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(LpoError, match="no weights can be read"):
        imagereward.load(str(tmp_path / "ir"), str(tmp_path / "ir"), CPU)
    assert "this ran" not in capsys.readouterr().out


def test_what_is_missing_or_wrong_is_named(tmp_path):
    words = str(clip_folder(tmp_path / "clip"))
    published = hps_folder(tmp_path / "hps")
    with pytest.raises(LpoError, match="there is no ImageReward.pt"):
        imagereward.load(words, words, CPU)
    with pytest.raises(LpoError, match="there is no tokenizer_config.json"):
        pickscore.load(words, str(tmp_path / "hps"), CPU)
    with pytest.raises(LpoError, match="can't find HPS_v2_compressed.pt"):
        hps.load("hps_v2", "nobody/nothing", words, CPU)
    path = tmp_path / "hps/HPS_v2_compressed.pt"
    state = published.state_dict()
    for wrong, message in (
        ({"state_dict": state | {"extra.weight": torch.zeros(1)}}, "unknown or missing weight 'extra.weight'"),
        ({"state_dict": {k: v for k, v in state.items() if k != "ln_final.bias"}}, "the weights don't fit"),
        (state, "there is no state_dict"),
    ):
        torch.save(wrong, path)
        with pytest.raises(LpoError, match=message):
            hps.load("hps_v2", str(tmp_path / "hps"), words, CPU)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(LpoError, match="no weights can be read"):
        hps.load("hps_v2", str(tmp_path / "hps"), words, CPU)
