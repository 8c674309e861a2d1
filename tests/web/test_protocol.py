"""A request is checked before any of it reaches the model."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from safetensors.torch import save

from lpo.errors import LpoError
from lpo.families.latent_space import LatentSpace
from lpo.web.protocol import Key, Served, read

SPACE = LatentSpace(4, 8, 0.5, 0.0, ())
SERVED = Served((4, 8, 8), SPACE, 1000, max_rows=3, embeddings=((5, 6), (7,)))
X = torch.zeros(2, 4, 8, 8)
PROMPTS = {"prompts": json.dumps(["a", "b"])}
EMBEDS = {"prompt_embeds": torch.ones(2, 5, 6), "pooled_prompt_embeds": torch.ones(2, 7)}
IMAGES = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
BAD = X.clone()
BAD[1, 0, 0, 0] = torch.nan


def rows(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None, served: Served = SERVED) -> Any:
    return read(save(tensors, PROMPTS if metadata is None else metadata), served)


def test_what_a_request_means() -> None:
    (key, first), (_, second) = rows({"latents": X.half()})
    assert key == Key(images=False, embeddings=False, noise="ensemble", seed=0)
    assert (first.text, second.text, first.time, first.seed) == ("a", "b", None, 0)
    found = rows({"latents": X, "u": torch.tensor([0.0, 1.0]), "seeds": torch.tensor([5, 6])}, {"prompts": '"a"'})
    assert [(key.noise, row.text, row.time, row.seed) for key, row in found] == [
        ("level", "a", 0.0, 5), ("level", "a", 1.0, 6)
    ]  # fmt: skip
    found = rows({"latents": X, "timesteps": torch.tensor([0, 999])})
    assert [(key.noise, row.time) for key, row in found] == [("none", 0), ("none", 999)]
    found = rows(
        {"images": torch.zeros(1, 3, 9, 3, dtype=torch.uint8), "seeds": torch.tensor([7])}, {"prompts": '["a"]'}
    )
    assert found[0][0] == Key(images=True, embeddings=False, noise="ensemble", seed=7)
    one = {name: tensor[:1] for name, tensor in EMBEDS.items()}
    ((key, row),) = rows({"latents": X[0], **one, "u": torch.tensor([0.4])}, {})  # as verl-omni sends one sample
    assert key.embeddings and torch.equal(row.text[1], torch.ones(7))


@pytest.mark.parametrize(
    ("tensors", "metadata", "match"),
    [
        ({}, None, "either latents or images"),
        ({"latents": X, "images": X + 1}, None, "either latents or images"),
        ({"latents": X, "weights": X + 1}, None, "unknown tensors: weights"),
        ({"latents": X.double()}, None, "float64, not"),
        ({"latents": torch.zeros(2, 16, 8, 8)}, None, r"\(N, 4, 8, 8\)"),
        ({"latents": torch.zeros(4, 4, 8, 8)}, None, "4 rows; a request holds 1 to 3"),
        ({"latents": torch.zeros(0, 4, 8, 8)}, None, "0 rows"),
        ({"latents": torch.zeros(())}, None, "0 rows"),
        ({"latents": BAD}, None, "1 of 2 rows are NaN or infinite"),
        ({"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, None, r"not \(N, H, W, 3\) uint8"),
        ({"images": torch.zeros(2, 8, 8, 3)}, None, r"not \(N, H, W, 3\) uint8"),
        ({"images": torch.zeros(2, 5000, 1, 3, dtype=torch.uint8)}, None, "sides up to 4096"),
        ({"latents": X}, {}, "a JSON list of 2 strings"),
        ({"latents": X}, {"prompts": '["a"]'}, "a JSON list of 2 strings"),
        ({"latents": X}, {"prompts": '["a", 1]'}, "a JSON list of 2 strings"),
        ({"latents": X}, {"prompts": "a"}, "not JSON"),
        ({"latents": X}, {"prompts": json.dumps("a" * 10_001)}, "10001 characters"),
        ({"latents": X, **EMBEDS}, None, "either prompts or prompt_embeds"),
        ({"latents": X, "prompt_embeds": EMBEDS["prompt_embeds"]}, {}, "came alone"),
        ({"latents": X, **EMBEDS, "pooled_prompt_embeds": torch.ones(2, 8)}, {}, r"\(2, 8\) float32, not \(2, 7\)"),
        ({"latents": X, "u": torch.tensor([0.5, 1.1])}, None, "u must be"),
        ({"latents": X, "u": torch.tensor([0.5, torch.nan])}, None, "u must be"),
        ({"latents": X, "u": torch.tensor([0.5])}, None, "u must be"),
        ({"latents": X, "timesteps": torch.tensor([0, 1000])}, None, "from 0 to 999"),
        ({"latents": X, "timesteps": torch.tensor([0.0, 1.0])}, None, "int64"),
        ({"latents": X, "timesteps": torch.tensor([0, 1]), "u": torch.zeros(2)}, None, "send one of them|adds noise"),
        ({"images": IMAGES, "timesteps": torch.tensor([0, 1])}, None, "noisy latents"),
        ({"latents": X, "seeds": torch.zeros(2)}, None, "int64"),
        ({"latents": X}, PROMPTS | {"latent_space": "{}"}, "latent_space is broken"),
        ({"latents": X}, PROMPTS | {"latent_space": json.dumps(asdict(replace(SPACE, channels=16)))}, "channels"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None, match: str) -> None:
    with pytest.raises(LpoError, match=match):
        rows(tensors, metadata)


@pytest.mark.parametrize(
    "body",
    [b"", b"\x00", b"\xff" * 100, save({"latents": X})[:-1], b"\x02\x00\x00\x00\x00\x00\x00\x00[]", b"\x80\x04N."],
)
def test_bytes_that_are_no_safetensors_are_refused(body: bytes) -> None:
    with pytest.raises(LpoError, match="not safetensors|either latents or images"):
        read(body, SERVED)


def test_embeddings_are_refused_unless_the_service_takes_them() -> None:
    with pytest.raises(LpoError, match="text encoders of its own"):
        rows({"latents": X, **EMBEDS}, {}, replace(SERVED, embeddings=None))
