"""The parameters that tests start from: those of the embedded world, whatever somebody has set in params.yaml.

`dvc exp run -S`, `lpo preset` and an editor change params.yaml, and the tests must stay green after any of them.
"""

from __future__ import annotations

from pathlib import Path

from lpo.config.presets import merge

REPOSITORY = Path(__file__).resolve().parents[2]
CHANGED_BY_TESTS = """
seed: 42
ingest: {source: data/inbox}
promote: {keep: 5}
publish: {hub: null, mlflow: null, wandb: null, folder: null}
tracking: {project: lpo}
"""  # values that no preset sets, and that a test replaces in the text of the file


def default_params() -> str:
    """The text of params.yaml with the preset emoji merged. A fresh clone has these values already."""
    preset = (REPOSITORY / "lpo/presets/emoji.yaml").read_text(encoding="utf-8")
    merged = merge((REPOSITORY / "params.yaml").read_text(encoding="utf-8"), preset)[0]
    return merge(merged, CHANGED_BY_TESTS)[0]


def with_default_params(folder: Path) -> Path:
    """Make `folder` the repository with those parameters: links to all of its files, and a params.yaml."""
    for path in REPOSITORY.iterdir():
        if path.name != "params.yaml":
            (folder / path.name).symlink_to(path)
    (folder / "params.yaml").write_text(default_params(), encoding="utf-8")
    return folder
