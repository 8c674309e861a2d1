"""The published scorers on tiny random models in folders of exactly the published layout, loaded from those folders."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from support.flan_t5 import VISION, WORDS, flan_t5_folders, image_processor, words
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    T5Config,
    T5ForConditionalGeneration,
)  # fmt: skip

from lpo.emoji.vocabulary import make_tokenizer
from lpo.errors import LpoError
from lpo.hub import read_weights
from lpo.scorers import aesthetic, clip_score, vqa
from lpo.scorers.published import Published, load_scorers, to_pictures

CPU = torch.device("cpu")


def pictures(count: int = 3) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(256, size=(20 + 3 * i, 31, 3), dtype=np.uint8)) for i in range(count)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """clip: CLIPModel and processor; predictor: CLIP and the head in one, as on the hub; head: LAION's file alone;
    t5: CLIP-FlanT5 with its projector; vision: its CLIP; llava: a model with a decoder alone."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    paths = SimpleNamespace(**{n: root / n for n in ("clip", "predictor", "head", "t5", "vision", "llava")})
    tokenizer = make_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    clip = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=VISION, projection_dim=12))
    clip.save_pretrained(paths.clip)
    CLIPProcessor(image_processor(), tokenizer).save_pretrained(paths.clip)

    vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, projection_dim=12))
    vision.save_pretrained(paths.predictor)
    image_processor().save_pretrained(paths.predictor)
    layers = nn.Sequential(
        nn.Linear(12, 10), nn.Dropout(0.2), nn.Linear(10, 8), nn.Dropout(0.2), nn.Linear(8, 6), nn.Dropout(0.1),
        nn.Linear(6, 4), nn.Linear(4, 1),
    )  # fmt: skip
    head = {f"layers.{name}": value for name, value in layers.state_dict().items()}
    paths.head.mkdir()
    torch.save(head, paths.head / "sac+logos+ava1-l14-linearMSE.pth")
    save_file(load_file(paths.predictor / "model.safetensors") | head, paths.predictor / "model.safetensors")

    flan_t5_folders(paths.t5, paths.vision)
    tokenizer = words()

    llama = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    llava = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=CLIPVisionConfig(**VISION), text_config=llama, image_token_index=3)
    )
    llava.save_pretrained(paths.llava)
    template = "{% for m in messages %}USER: {% for c in m.content %}{% if c.type == 'image' %}<image> {% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %} answer"  # noqa: E501
    LlavaProcessor(
        image_processor(), tokenizer, patch_size=8, vision_feature_select_strategy="default", chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(paths.llava)  # fmt: skip
    return paths


def test_clip_score_is_the_cosine_of_the_models_own_embeddings(folders: SimpleNamespace) -> None:
    captions = ["a cat", "two dogs on sand", "a " + "cat " * 300]  # the last is longer than the model reads
    found = clip_score.load(str(folders.clip), CPU, torch.float32).score(pictures(), captions)
    model, processor = CLIPModel.from_pretrained(folders.clip), CLIPProcessor.from_pretrained(folders.clip)
    read = processor(text=captions, images=pictures(), return_tensors="pt", padding=True, truncation=True)
    with torch.no_grad():
        out = model(**read)
    torch.testing.assert_close(found, F.cosine_similarity(out.image_embeds, out.text_embeds), rtol=1e-5, atol=1e-6)


def test_the_aesthetic_predictor_is_the_same_from_a_hub_folder_and_from_laions_file(folders: SimpleNamespace) -> None:
    whole = aesthetic.load(str(folders.predictor), None, CPU, torch.float32)
    file = next(folders.head.iterdir())
    parts = aesthetic.load(str(folders.predictor), str(file), CPU, torch.float32)
    assert [layer.out_features for layer in parts.head] == [10, 8, 6, 4, 1]
    found = whole.score(pictures())
    torch.testing.assert_close(parts.score(pictures()), found)
    vision = CLIPVisionModelWithProjection.from_pretrained(folders.predictor)
    with torch.no_grad():
        value = F.normalize(vision(image_processor()(pictures(), return_tensors="pt").pixel_values).image_embeds, dim=1)
    for number in (0, 2, 4, 6, 7):
        weights = torch.load(file, weights_only=True)
        value = value @ weights[f"layers.{number}.weight"].T + weights[f"layers.{number}.bias"]
    torch.testing.assert_close(found, value[:, 0], rtol=1e-5, atol=1e-6)


def test_a_linear_head_is_a_predictor_too_and_no_other_file_is(folders: SimpleNamespace, tmp_path: Path) -> None:
    save_file({"weight": torch.ones(1, 12), "bias": torch.zeros(1)}, tmp_path / "linear.safetensors")
    linear = aesthetic.load(str(folders.predictor), str(tmp_path / "linear.safetensors"), CPU, torch.float32)
    assert [layer.out_features for layer in linear.head] == [1]
    for name, weights in {
        "name": {"layer.weight": torch.ones(1, 12)},
        "no bias": {"layers.0.weight": torch.ones(1, 12)},
        "gap": {f"layers.{i}.{k}": torch.ones(*s) for i in (0, 2) for k, s in (("weight", (1, 12)), ("bias", (1,)))},
    }.items():
        save_file(weights, tmp_path / f"{name}.safetensors")
        with pytest.raises(LpoError, match="no aesthetic predictor"):
            aesthetic.load(str(folders.predictor), str(tmp_path / f"{name}.safetensors"), CPU, torch.float32)
    save_file({"weight": torch.ones(1, 7), "bias": torch.zeros(1)}, tmp_path / "width.safetensors")
    with pytest.raises(LpoError, match="reads 7 numbers, the model makes 12"):
        aesthetic.load(str(folders.predictor), str(tmp_path / "width.safetensors"), CPU, torch.float32)


def test_clip_flan_t5_is_t5_over_text_picture_text(folders: SimpleNamespace) -> None:
    model = vqa.load(str(folders.t5), str(folders.vision), str(folders.t5), CPU, torch.float32)
    captions = ["a cat", "a dog a cat a dog", "no"]
    found = model.score(pictures(), captions)
    t5 = T5ForConditionalGeneration.from_pretrained(folders.t5, config=T5Config.from_pretrained(folders.t5))
    head = load_file(folders.t5 / "model.safetensors")["lm_head.weight"]
    assert not torch.equal(head, t5.shared.weight)
    clip, weights = CLIPVisionModel.from_pretrained(folders.vision), read_weights(str(folders.t5), "mm_projector.")
    tokenizer, expected = words(), []
    for picture, caption in zip(pictures(), captions, strict=True):  # one by one: no padding, no mask
        canvas = Image.new("RGB", (31, 31), (122, 116, 104))
        canvas.paste(picture, (0, (31 - picture.height) // 2))
        with torch.no_grad():
            hidden = clip(image_processor()(canvas, return_tensors="pt").pixel_values, output_hidden_states=True)
            x = hidden.hidden_states[-2][0, 1:]
            x = F.gelu(x @ weights["mm_projector.0.weight"].T + weights["mm_projector.0.bias"])
            x = x @ weights["mm_projector.2.weight"].T + weights["mm_projector.2.bias"]
            question = f'\nDoes this figure show "{caption}"? Please answer yes or no. ASSISTANT: '
            parts = [t5.shared(torch.tensor(tokenizer(text).input_ids)) for text in (vqa.SYSTEM, question)]
            inputs = torch.cat([parts[0], x, parts[1]])[None]
            read = t5.encoder(inputs_embeds=inputs).last_hidden_state
            said = t5.decoder(input_ids=torch.tensor([[0, 4]]), encoder_hidden_states=read).last_hidden_state
            logits = (said @ head.T)[0].softmax(-1)
        expected.append((logits[0, 4] * logits[1, 1]).sqrt())  # Yes, then the end of the text
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-6)


def test_a_lighter_model_of_transformers_answers_with_its_first_token(folders: SimpleNamespace) -> None:
    model = vqa.load(str(folders.llava), None, None, CPU, torch.float32)
    captions = ["a cat", "no", "a dog"]
    found = model.score(pictures(), captions)
    assert found.shape == (3,) and bool(((found > 0) & (found < 1)).all())
    torch.testing.assert_close(model.score(pictures()[1:2], captions[1:2])[0], found[1])
    assert len(set(found.tolist())) == 3


def test_the_three_stand_behind_one_interface(folders: SimpleNamespace, repository: Path) -> None:
    import dataclasses

    from lpo.config import load_params

    config = load_params(repository / "params.yaml").score
    models = dataclasses.replace(
        config.models, aesthetic=str(folders.predictor), clip=str(folders.clip), vqa=str(folders.t5),
        vqa_vision=str(folders.vision), vqa_tokenizer=None, dtype="fp32",
    )  # fmt: skip
    scorers = load_scorers(dataclasses.replace(config, scorers="published", models=models), CPU)
    assert isinstance(scorers, Published)
    images = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scores = scorers.score(images, ["a cat", "a dog"])
    assert {k: (v.shape, v.dtype) for k, v in scores.items()} == dict.fromkeys(
        ("aesthetic", "clip", "vqa"), (torch.Size([2]), torch.float32)
    )
    again = scorers.score(to_pictures(images), ["a cat", "a dog"])
    for name, value in scores.items():
        torch.testing.assert_close(again[name], value)


class Boom:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    folders: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("head.pth").write_bytes(pickle.dumps({"weight": Boom()}))
    torch.save({"weight": Boom()}, "zip.pth")
    Path("head.safetensors").write_bytes(Path("head.pth").read_bytes())  # a pickle under the name of safetensors
    for name in ("head.pth", "zip.pth", "head.safetensors"):
        with pytest.raises(LpoError, match="no weights can be read"):
            aesthetic.load(str(folders.predictor), name, CPU, torch.float32)
    assert not Path("ran").exists()


def test_models_that_are_not_here_say_what_to_do(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent")
    for load in (
        lambda: aesthetic.load(absent, None, CPU, torch.float32),
        lambda: clip_score.load(absent, CPU, torch.float32),
        lambda: vqa.load(absent, None, None, CPU, torch.float32),
        lambda: vqa.load(absent, absent, absent, CPU, torch.float32),
    ):
        with pytest.raises(LpoError, match="HF_HUB_OFFLINE=0"):
            load()


def test_sharded_weights_are_read_by_prefix(tmp_path: Path) -> None:
    save_file({"a.x": torch.zeros(1)}, tmp_path / "model-00001-of-00002.safetensors")
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"damaged, and not asked for")
    places = {"a.x": "model-00001-of-00002.safetensors", "b.y": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert list(read_weights(str(tmp_path), "a.")) == ["a.x"]
    with pytest.raises(LpoError, match="no weights can be read"):
        read_weights(str(tmp_path), "b.")
