"""What is retried: a busy lock, the network, a lost worker. Bad data, bad parameters and failing code are not."""

from __future__ import annotations

from typing import Any

from prefect.cache_policies import NO_CACHE

from tasks.reproduce import Transient


def is_transient(_task: Any, _run: Any, state: Any) -> bool:
    return isinstance(state.result(raise_on_failure=False), Transient)


RETRIED: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "retries": 3,
    "retry_delay_seconds": [2, 15, 60],
    "retry_condition_fn": is_transient,
}
