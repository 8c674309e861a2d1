"""The reward as a service: it answers what the library scores, for many at once, and refuses in words."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from safetensors.torch import save
from starlette.testclient import TestClient

from lpo.errors import LpoError
from lpo.families import sd
from lpo.families.dit import sd3
from lpo.random import generator
from lpo.rewards.lrm import LatentRewardModel
from lpo.rewards.scoring import Reward
from lpo.web import reward as service
from lpo.web import server
from lpo.web.access import TOKEN
from lpo.web.reward import Limits, reward_app
from lpo.web.server import Announcing

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs/serving.md").read_text(encoding="utf-8")
X = torch.randn(3, 4, 8, 8, generator=generator(0, "x"))
PROMPTS = ["a cat", "two dogs", "a taxi at night"]


@pytest.fixture(scope="module")
def reward(tiny_base: Path) -> Reward:
    """One for all tests of this file: nothing changes it."""
    torch.manual_seed(1)
    cpu, base = torch.device("cpu"), str(tiny_base)
    codec = sd.load(base, cpu, torch.float32).codec
    model = LatentRewardModel(sd.load(base, cpu, torch.float32, reward=True), 8, 7.5, "multi_scale")
    model.latent_space = codec.space()
    return Reward(model, codec)


@pytest.fixture
def client(reward: Reward) -> Iterator[TestClient]:
    with TestClient(reward_app(reward, Limits(max_batch=8), None, embeddings=True), "http://127.0.0.1") as found:
        yield found


def body(tensors: dict[str, torch.Tensor], prompts: Any = PROMPTS) -> bytes:
    return save(tensors, {} if prompts is None else {"prompts": json.dumps(prompts)})


def scores(client: TestClient, tensors: dict[str, torch.Tensor], prompts: Any = PROMPTS) -> torch.Tensor:
    answer = client.post("/v1/score", content=body(tensors, prompts), headers={"x-drm-protocol-version": "1"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["protocol_version"] == "1"
    return torch.tensor(answer.json()["raw_scores"])


def test_latents_images_and_embeddings_have_the_scores_of_the_library(client: TestClient, reward: Reward) -> None:
    expected = reward.score(X, PROMPTS)
    torch.testing.assert_close(scores(client, {"latents": X}), expected)
    embeds = reward.model.encode_prompts(PROMPTS)
    named = {"prompt_embeds": embeds.tensors["prompt_embeds"].contiguous(), "pooled_prompt_embeds": embeds.pooled}
    torch.testing.assert_close(scores(client, {"latents": X, **named}, None), expected)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
    expected = reward.score([Image.fromarray(picture) for picture in pictures], "a cat", seed=4)
    sent = {"images": torch.from_numpy(pictures), "seeds": torch.tensor([4, 4])}
    torch.testing.assert_close(scores(client, sent, "a cat"), expected)


def test_the_noise_of_a_row_is_its_level_and_its_seed(client: TestClient, reward: Reward) -> None:
    """u T is rounded to a timestep; without seeds all rows have the noise of seed 0."""
    t = torch.tensor([0, 400, 999])
    seeds = torch.tensor([3, 1, 3])
    noise = torch.stack([torch.randn(4, 8, 8, generator=generator(int(seed), "score")) for seed in seeds])
    noisy = reward.model.backbone.transition(1.0).add_noise(X, noise, t)
    expected = reward.score_at(noisy, t, PROMPTS)
    u = torch.tensor([0.0, 0.4, 1.0])
    torch.testing.assert_close(scores(client, {"latents": X, "u": u, "seeds": seeds}), expected)
    torch.testing.assert_close(scores(client, {"latents": noisy, "timesteps": t}), expected)
    one = {"latents": X[1:2], "u": u[1:2]}
    torch.testing.assert_close(scores(client, one | {"seeds": seeds[1:2]}, PROMPTS[1:2]), expected[1:2])
    torch.testing.assert_close(
        scores(client, one, "a cat"), scores(client, one | {"seeds": torch.zeros(1).long()}, "a cat")
    )


def test_ensembles_of_several_seeds_come_back_in_the_order_of_the_rows(client: TestClient, reward: Reward) -> None:
    expected = torch.cat([reward.score(X[i : i + 1], PROMPTS[i], seed=seed) for i, seed in enumerate((2, 1, 2))])
    torch.testing.assert_close(scores(client, {"latents": X, "seeds": torch.tensor([2, 1, 2])}), expected)


def test_a_flow_model_is_asked_at_every_level_and_with_t5_needs_prompts(
    tiny_sd3_base: Path, tiny_sd3_t5_base: Path
) -> None:
    """What verl-omni's client sends for SD3: one sample, embeddings, u and perhaps a seed."""

    def load(base: Path) -> Reward:
        torch.manual_seed(0)
        backbone = sd3.load(str(base), torch.device("cpu"), torch.float32, reward=True, layer=1)
        codec = sd3.load(str(base), torch.device("cpu"), torch.float32).codec
        return Reward(LatentRewardModel(backbone, 8, 1.0, "mid", latent_space=codec.space()), codec)

    reward = load(tiny_sd3_base)
    x, u = torch.randn(1, *reward.model.backbone.latent_shape), torch.tensor([0.4321])
    text = reward.model.encode_prompts(["a cat"])
    sent = {
        "latents": x, "prompt_embeds": text.tensors["prompt_embeds"].contiguous(), "pooled_prompt_embeds": text.pooled,
        "u": u, "seeds": torch.tensor([0]),
    }  # fmt: skip
    with TestClient(reward_app(reward, Limits(), None, embeddings=True), "http://localhost") as client:
        found = scores(client, sent, None)
    noise = torch.randn(x.shape[1:], generator=generator(0, "score"))[None]
    torch.testing.assert_close(found, reward.score_at((1 - u) * x + u * noise, 1000 * u, "a cat"))
    with pytest.raises(LpoError, match="reads more of a prompt"):
        reward_app(load(tiny_sd3_t5_base), Limits(), None, embeddings=True)


def test_refusals_are_answers_in_words_and_are_counted(reward: Reward, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(max_batch=2, max_queue=2, max_bytes=4000)
    with TestClient(reward_app(reward, limits, None), "http://127.0.0.1") as client:

        def refused(status: int, match: str, content: bytes = b"", version: str = "1") -> None:
            answer = client.post("/v1/score", content=content, headers={"x-drm-protocol-version": version})
            assert answer.status_code == status and re.search(match, answer.json()["error"]), answer.text

        good = body({"latents": X[:1]}, "a cat")
        refused(400, "protocol version is '2'", good, "2")
        refused(413, "larger than 4000 bytes", body({"latents": X}, "a" * 2000))
        refused(422, "not safetensors")
        refused(422, "text encoders of its own", body({"latents": X[:1], "prompt_embeds": X[:1] + 1}, None))
        assert client.get("/v1/score").status_code == 405 and client.get("/etc").status_code == 404
        with monkeypatch.context() as patch:
            patch.setattr(service, "score_rows", lambda reward, key, rows: [float("nan")])
            refused(500, "NaN or infinite", good)
            patch.setattr(service, "score_rows", lambda reward, key, rows: 1 / 0)
            refused(500, "could not be scored", good)
        started, gate = threading.Event(), threading.Event()

        def slow(reward: Reward, key: Any, rows: list[Any]) -> list[float]:
            started.set()
            assert gate.wait(20)
            return [0.0] * len(rows)

        with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
            patch.setattr(service, "score_rows", slow)
            two = body({"latents": X[:2]}, "a cat")
            first = pool.submit(client.post, "/v1/score", content=two)
            assert started.wait(20)
            second = pool.submit(client.post, "/v1/score", content=two)
            deadline = time.monotonic() + 20
            while "lpo_reward_waiting_rows 2.0" not in client.get("/metrics").text:
                assert time.monotonic() < deadline
            refused(503, "too many rows", good)
            assert client.get("/healthz").json() == {"status": "ok"}  # it answers while the model works
            gate.set()
            assert first.result().status_code == second.result().status_code == 200
        shown = client.get("/metrics").text
    for line in ('requests_total{status="200"} 2.0', 'requests_total{status="422"} 2.0', "rows_total 4.0"):
        assert f"lpo_reward_{line}" in shown


def test_info_tells_what_to_send(client: TestClient, reward: Reward) -> None:
    found = client.get("/v1/info").json()
    assert (found["latent_shape"], found["timesteps"], found["max_rows"]) == ([4, 8, 8], 1000, 8)
    metadata = {"prompts": '"a cat"', "latent_space": json.dumps(found["space"])}
    assert client.post("/v1/score", content=save({"latents": X}, metadata)).status_code == 200
    found["space"]["probe"] = [-value for value in found["space"]["probe"]]
    other = save({"latents": X}, metadata | {"latent_space": json.dumps(found["space"])})
    assert "another VAE" in client.post("/v1/score", content=other).json()["error"]


@pytest.fixture
def running(tmp_path: Path, reward: Reward, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """`lpo serve reward` in a thread, on the port that is yielded, with a token."""
    from lpo.commands import serve

    reward.model.save(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    servers: list[Announcing] = []

    def keep(config: uvicorn.Config, address: str) -> Announcing:
        servers.append(Announcing(config, address))
        return servers[0]

    monkeypatch.setattr(server, "Announcing", keep)
    monkeypatch.setenv(TOKEN, "secret")
    words = (tmp_path, str(tiny_base), "cpu", "fp32", "127.0.0.1", port, Limits(max_wait_ms=50), False)
    thread = threading.Thread(target=serve.reward, args=words)
    thread.start()
    try:
        deadline = time.monotonic() + 120
        while not (servers and servers[0].started):
            assert thread.is_alive() and time.monotonic() < deadline
            thread.join(0.02)
        yield port
    finally:
        for each in servers:
            each.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def test_the_client_of_the_documentation_and_many_at_once(running: int) -> None:
    """The service computes fewer batches than it gets requests, and everybody gets the scores of their own rows."""
    (code,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert len(code.splitlines()) <= 10
    names: dict[str, Any] = {}
    code = code.replace("127.0.0.1:8000/v1/score", f"127.0.0.1:{running}/v1/score?token=secret")
    exec(compile(code, "docs/serving.md", "exec"), names)
    assert len(names["scores"]) == 2 and all(np.isfinite(names["scores"]))
    address = f"http://127.0.0.1:{running}"
    with httpx2.Client(headers={"authorization": "Bearer secret"}, timeout=30) as client:

        def ask(i: int) -> float:
            x = X[i % 3 : i % 3 + 1]
            answer = client.post(f"{address}/v1/score", content=body({"latents": x}, PROMPTS[i % 3 : i % 3 + 1]))
            return answer.json()["raw_scores"][0]

        with ThreadPoolExecutor(24) as pool:
            found = torch.tensor(list(pool.map(ask, range(24)))).view(8, 3)
        torch.testing.assert_close(found, found[:1].expand(8, 3))
        assert len(set(found[0].tolist())) == 3
        shown = client.get(f"{address}/metrics").text
        assert client.get(f"{address}/metrics", headers={"authorization": ""}).status_code == 401
    batches = float(re.findall(r"^lpo_reward_batch_rows_count (\S+)", shown, re.MULTILINE)[0])
    assert "lpo_reward_rows_total 26.0" in shown and batches <= 15
