"""The registry of Weights & Biases: an artifact of the project, linked to a collection with the alias promoted.

The account is that of `wandb login` or WANDB_API_KEY. tracking.wandb must be online: offline, W&B links nothing.
"""

from __future__ import annotations

from pathlib import Path

from lpo.config import Tracking
from lpo.publish.package import ALIAS, Package

PATIENCE = 60.0  # seconds to sign in
UPLOAD = 1800  # seconds to upload


def push(package: Package, place: str, tracking: Tracking) -> str:
    """Log the package as an artifact of a run of its own, and link it to the collection `place`."""
    import wandb

    folder = Path(".wandb").resolve()
    folder.mkdir(exist_ok=True)
    settings = wandb.Settings(
        silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True, init_timeout=PATIENCE
    )
    run = wandb.init(
        project=tracking.project, name=package.name, job_type="publish", mode="online", dir=folder,
        config=package.lineage, settings=settings,
    )  # fmt: skip
    try:
        artifact = wandb.Artifact(
            tracking.project, type="model", description=package.record["reason"],
            metadata={"name": package.name, "lineage": package.lineage, "evaluation": package.metrics},
        )  # fmt: skip
        artifact.add_dir(str(package.folder))
        run.log_artifact(artifact).wait(timeout=UPLOAD)
        run.link_artifact(artifact, place, aliases=[ALIAS, package.name])
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()
    return f"{place}:{ALIAS}"
