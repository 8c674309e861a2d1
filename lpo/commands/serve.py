"""serve: the reward model of a folder as a web service, until it is interrupted."""

from __future__ import annotations

from pathlib import Path

import typer

from lpo.rewards.scoring import Reward
from lpo.web.access import token_for
from lpo.web.reward import Limits, reward_app
from lpo.web.server import serve


def reward(
    folder: Path, base: str | None, device: str, dtype: str, host: str, port: int, limits: Limits, embeddings: bool
) -> None:
    """Load the reward and answer requests; the address is the first line on stdout.

    Raises:
        LpoError: if there is no latent reward model, or the address cannot be used.
    """
    token = token_for(host)
    app = reward_app(Reward.load(folder, base, device, dtype), limits, token, embeddings)
    typer.echo(f"serving {folder}; stop with Ctrl-C", err=True)
    serve(app, host, port, token, "/v1/score")
