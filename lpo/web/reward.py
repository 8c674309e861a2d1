"""The reward as a service: POST /v1/score takes latents or images and prompts, and answers scores.

    app = reward_app(Reward.load("data/reward"), Limits(), token=None)

GET /healthz says whether it is ready, GET /v1/info what the model takes, GET /metrics counts for Prometheus.
protocol.py describes a request. An answer is {"protocol_version": "1", "raw_scores": [...]}.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from lpo.diffusion.transitions import DDIM
from lpo.errors import LpoError
from lpo.families.conditioning import Conditioning
from lpo.random import generator
from lpo.rewards.scoring import Reward
from lpo.web import protocol
from lpo.web.access import Guard, refuse
from lpo.web.batching import Batcher, Full, Stopped
from lpo.web.protocol import Key, Row, Served

log = logging.getLogger(__name__)
READING = 30.0  # seconds in which a body must have come


@dataclass(frozen=True)
class Limits:
    """max_batch: rows of a batch and of a request. max_wait_ms: how long a request waits for others. max_queue: rows
    that may wait. max_bytes: of a request."""

    max_batch: int = 32
    max_wait_ms: float = 5.0
    max_queue: int = 256
    max_bytes: int = 64 * 2**20


class Counts:
    """What /metrics shows."""

    def __init__(self, waiting: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("lpo_reward_requests", "Requests by status.", ["status"], registry=self.registry)
        self.rows = Counter("lpo_reward_rows", "Rows scored.", registry=self.registry)
        sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256]
        self.batches = Histogram("lpo_reward_batch_rows", "Rows of a batch.", buckets=sizes, registry=self.registry)
        self.seconds = Histogram("lpo_reward_seconds", "Seconds of a request.", registry=self.registry)
        Gauge("lpo_reward_waiting_rows", "Rows that wait.", registry=self.registry).set_function(waiting)


def reward_app(reward: Reward, limits: Limits, token: str | None, embeddings: bool = False) -> ASGIApp:
    """The service as an ASGI app.

    Args:
        token: what requests must send; None only on loopback.
        embeddings: take prompt_embeds. They are scored rightly only if the text encoders that made them are those of
            the reward.

    Raises:
        LpoError: if `embeddings` is asked of a reward that needs more of a prompt.
    """
    served = serves(reward, limits.max_batch, embeddings)
    batcher = Batcher(
        lambda key, rows: score_rows(reward, key, rows), limits.max_batch, limits.max_wait_ms / 1000, limits.max_queue,
        lambda rows: counts.batches.observe(rows),
    )  # fmt: skip
    counts = Counts(lambda: batcher.waiting)

    async def score(request: Request) -> Response:
        started = time.monotonic()
        response = await _answer(request, served, batcher)
        counts.requests.labels(response.status_code).inc()
        counts.seconds.observe(time.monotonic() - started)
        if response.status_code == 200:
            counts.rows.inc(int(response.headers["x-rows"]))
        return response

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def info(request: Request) -> Response:
        return JSONResponse({"protocol_version": protocol.VERSION, "about": reward.comparable, **asdict(served)})

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(counts.registry), media_type=CONTENT_TYPE_LATEST)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    routes = [
        Route("/v1/score", score, methods=["POST"]), Route("/v1/info", info), Route("/healthz", healthz),
        Route("/metrics", metrics),
    ]  # fmt: skip
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _plain})
    return Guard(app, token, limits.max_bytes, ["/healthz"])


async def _plain(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refuse(error.status_code, error.detail, headers=dict(error.headers or {}))


async def _answer(request: Request, served: Served, batcher: Batcher) -> Response:
    version = request.headers.get(protocol.HEADER, protocol.VERSION)
    if version != protocol.VERSION:
        return refuse(400, f"the protocol version is {version[:20]!r}", f"send {protocol.HEADER}: {protocol.VERSION}")
    try:
        body = await asyncio.wait_for(request.body(), READING)
        rows = await asyncio.to_thread(protocol.read, body, served)
        values = await _score(rows, batcher)
    except HTTPException as error:
        return refuse(error.status_code, error.detail)
    except TimeoutError:
        return refuse(408, f"the request did not come within {READING:g} seconds", "send it again")
    except ClientDisconnect:
        return refuse(400, "the request ended early")
    except LpoError as error:
        return refuse(422, f"{error.where}: {error.what}" if error.where else error.what, error.remedy)
    except Full:
        headers = {"retry-after": "1"}
        return refuse(503, "too many rows are waiting", "send fewer at once, or try again later", headers)
    except Stopped:
        return refuse(503, "the service is stopping", "try again later", {"retry-after": "5"})
    except Exception:
        log.exception("a request could not be scored")
        return refuse(500, "the request could not be scored", "read the log of the service")
    if not all(map(math.isfinite, values)):
        return refuse(500, "the model gave a score that is NaN or infinite", "use another --dtype")
    answer = {"protocol_version": protocol.VERSION, "raw_scores": values}
    return JSONResponse(answer, headers={"x-rows": str(len(values))})


async def _score(rows: Sequence[tuple[Key, Row]], batcher: Batcher) -> list[float]:
    """The scores in the order of the rows. Rows of another seed are another batch."""
    if batcher.waiting + len(rows) > batcher.max_queue:
        raise Full
    by_key: dict[Key, list[int]] = {}
    for i, (key, _) in enumerate(rows):
        by_key.setdefault(key, []).append(i)
    asked = [batcher.submit(key, [rows[i][1] for i in places]) for key, places in by_key.items()]
    found = await asyncio.gather(*asked)
    places = [i for part in by_key.values() for i in part]
    values = dict(zip(places, [value for part in found for value in part], strict=True))
    return [values[i] for i in range(len(rows))]


def serves(reward: Reward, max_rows: int, embeddings: bool) -> Served:
    """What a request may hold. Raises LpoError if the reward cannot read embeddings."""
    backbone = reward.model.backbone
    shapes = None
    if embeddings:
        null = reward.model.encode_prompts([""])
        extra = set(null.tensors) - {"prompt_embeds", "pooled"}
        if extra or not torch.equal(null.tensors.get("pooled", null.pooled), null.pooled):
            what = "this reward reads more of a prompt than prompt_embeds and pooled_prompt_embeds hold"
            raise LpoError(what, "--embeddings", "leave the option out, and send prompts")
        shapes = (tuple(null.tensors["prompt_embeds"].shape[1:]), tuple(null.pooled.shape[1:]))
    steps = backbone.transition(1.0).num_train_timesteps
    return Served(backbone.latent_shape, reward.codec.space(), steps, max_rows, shapes)


@torch.no_grad()
def score_rows(reward: Reward, key: Key, rows: list[Row]) -> list[float]:
    """The scores of rows of one kind.

    ensemble: S(p, x_0), the mean over the reward's timesteps, as `Reward.score` has it
    level:    S(p, add_noise(x_0, eps, u T), u T), eps of each row's own seed
    none:     S(p, x_t, t)
    """
    backbone = reward.model.backbone
    if key.images:
        latents = reward.encode([Image.fromarray(row.x.numpy()) for row in rows])
    else:
        latents = torch.stack([row.x.float() for row in rows])
    text = _conditioning(reward, rows) if key.embeddings else [str(row.text) for row in rows]
    if key.noise == "ensemble":
        return reward.score(latents, text, seed=key.seed).tolist()
    latents = latents.to(backbone.device, backbone.dtype)
    transition = backbone.transition(1.0)
    times = torch.tensor([row.time for row in rows], device=backbone.device)
    if key.noise == "level":
        times = times * transition.num_train_timesteps
    if isinstance(transition, DDIM):  # it knows whole timesteps; a flow knows every time
        times = times.round().long().clamp(max=transition.num_train_timesteps - 1)
    if key.noise == "level":
        noise = [torch.randn(latents.shape[1:], generator=generator(row.seed, "score")) for row in rows]
        latents = transition.add_noise(latents, torch.stack(noise).to(latents), times)
    return reward.score_at(latents, times, text).tolist()


def _conditioning(reward: Reward, rows: list[Row]) -> Conditioning:
    """Embeddings of verl-omni's names as the family's conditioning."""
    backbone = reward.model.backbone
    embeds, pooled = (
        torch.stack([row.text[i] for row in rows]).to(backbone.device, backbone.dtype)  # type: ignore[misc]
        for i in (0, 1)
    )
    tensors = {"prompt_embeds": embeds}
    if "pooled" in reward.model.encode_prompts([""]).tensors:
        tensors["pooled"] = pooled
    return Conditioning(tensors, pooled)
