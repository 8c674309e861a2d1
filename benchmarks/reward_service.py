"""Throughput of `lpo serve reward` beside calls of the library: `python -m benchmarks.reward_service`.

    python -m benchmarks.reward_service --reward data/reward --base data/base --seconds 10

A request holds clean latents and their prompts, and is answered with the mean over the reward's timesteps, as
`Reward.score` has it. The service is a process of its own on loopback. Clients are threads that keep their connection
and send the next request when they have the answer. The direct calls have the same latents and the same threads of
torch, and run before the service starts, one after another.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import torch
from safetensors.torch import save

from lpo import Reward
from lpo.random import generator

ROWS, CLIENTS = (1, 8, 32), (1, 8)  # latents of a request, and who send requests at once
PROMPTS = ("a cat left of a taxi at night", "two dogs", "a red car", "a tree on a beach")
WARM_UP = 3  # calls that are not counted


class Rate(NamedTuple):
    """What one case came to. seconds: of each call."""

    who: str
    rows: int
    seconds: list[float]
    wall: float

    def line(self) -> str:
        calls = len(self.seconds) / self.wall
        p50, p95 = 1000 * np.quantile(self.seconds, [0.5, 0.95])
        return f"| {self.who} | {self.rows} | {calls:.1f} | {calls * self.rows:.0f} | {p50:.0f} | {p95:.0f} |"


def calls_in(seconds: float, call: Callable[[], object]) -> list[float]:
    """How long each call took, one after another, until that many seconds have passed."""
    took, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        started = time.perf_counter()
        call()
        took.append(time.perf_counter() - started)
    return took


def measured(who: str, rows: int, seconds: float, calls: list[Callable[[], object]]) -> Rate:
    """All calls at once, each in a thread of its own."""
    with ThreadPoolExecutor(len(calls)) as pool:
        for _ in range(WARM_UP):
            list(pool.map(lambda call: call(), calls))
        started = time.perf_counter()
        took = list(pool.map(lambda call: calls_in(seconds, call), calls))
        return Rate(who, rows, [one for client in took for one in client], time.perf_counter() - started)


def client(address: str, body: bytes) -> Callable[[], dict[str, Any]]:
    """A function that sends the request and returns the scores, over one connection."""
    where = urlsplit(address)
    connection = HTTPConnection(where.netloc, timeout=60)

    def ask() -> dict[str, Any]:
        try:
            connection.request("POST", where.path, body)
            answer = connection.getresponse()
        except ConnectionError:  # the service ends a connection that was idle for five seconds
            connection.close()
            connection.request("POST", where.path, body)
            answer = connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            sys.exit(f"the service answered {answer.status}: {data.decode()}")
        found: dict[str, Any] = json.loads(data)
        return found

    return ask


@contextmanager
def service(reward: Path, base: Path) -> Iterator[str]:
    """The address of a service, which ends with the block."""
    command = [sys.executable, "-m", "lpo.cli", "serve", "reward", str(reward), "--base", str(base), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip() or sys.exit("the service did not start")
        finally:
            process.terminate()


def run(reward: Path, base: Path, seconds: float) -> tuple[list[Rate], float]:
    """All cases, and the largest difference between a score of the service and one of the library."""
    loaded = Reward.load(reward, base)
    shape, random = loaded.model.backbone.latent_shape, generator(0, "benchmark")
    latents = torch.randn(max(ROWS), *shape, generator=random)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(max(ROWS))]
    rates = [
        measured("direct calls", rows, seconds, [partial(loaded.score, latents[:rows], prompts[:rows])])
        for rows in ROWS
    ]
    with service(reward, base) as address:
        for many in CLIENTS:
            for rows in ROWS:
                body = save({"latents": latents[:rows].clone()}, {"prompts": json.dumps(prompts[:rows])})
                who = f"{many} client" + "s" * (many > 1)
                rates.append(measured(who, rows, seconds, [client(address, body) for _ in range(many)]))
        served = client(address, save({"latents": latents}, {"prompts": json.dumps(prompts)}))()["raw_scores"]
    return rates, float((torch.tensor(served) - loaded.score(latents, prompts).cpu()).abs().max())


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m benchmarks.reward_service", description=__doc__)
    options.add_argument("--reward", type=Path, default=Path("data/reward"))
    options.add_argument("--base", type=Path, default=Path("data/base"))
    options.add_argument("--seconds", type=float, default=10, help="of each case")
    given = options.parse_args()
    rates, difference = run(given.reward, given.base, given.seconds)
    print("| | latents of a request | requests/s | latents/s | median, ms | 95th percentile, ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    print("\n".join(rate.line() for rate in rates))
    print(f"threads of torch: {torch.get_num_threads()}. Scores differ by {difference:.1e} at most.")


if __name__ == "__main__":
    main()
