"""What is published of a promoted model: one folder, the same for every place.

    pytorch_lora_weights.safetensors   the adapter
    README.md                          the model card
    evaluation.json                    metrics/evaluate.json of the promotion
    lineage.json                       hashes of the data, parameters, git revision, the gate
    reward/                            the reward model that trained it, if it is still here

It is made in models/.publish/NAME before anything is sent, and stays there until every place has it. So the reward of
tonight is what is sent, whenever a place can be reached again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lpo.errors import LpoError
from lpo.files import atomic_folder, write_json
from lpo.registry.ledger import ROOT, WEIGHTS, Record, check_files

PACKAGES = ROOT / ".publish"
CARD, EVALUATION, LINEAGE, REWARD = "README.md", "evaluation.json", "lineage.json", "reward"
TEXT = {".json", ".md", ".txt", ".jinja", ".model"}  # .model: a vocabulary of SentencePiece
FACTS = ("name", "time", "against", "reason", "made_from")  # of a promotion, for lineage.json
ALIAS = "promoted"  # in registries, of the version in use


@dataclass(frozen=True)
class Package:
    """record: the line of the ledger that says why the model was promoted, from which the facts come."""

    name: str
    folder: Path
    record: Record

    @property
    def metrics(self) -> dict[str, float]:
        """The finite numbers of the evaluation by path, such as win_rate.overall.value."""
        return dict(_numbers(self.record["metrics"]))

    @property
    def lineage(self) -> dict[str, str]:
        """git.commit, git.changed (how many paths differed from it), and data.PATH: the MD5 that DVC records."""
        made = self.record["made_from"]
        git = {"git.commit": made["revision"]["commit"], "git.changed": str(len(made["revision"]["changed"]))}
        return git | {f"data.{path}": md5 for path, md5 in sorted(made["data"].items())}

    @property
    def files(self) -> dict[str, Path]:
        """Every file by its name in the package."""
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path for path in found}


def build(record: Record, card: Path | None, reward: Path | None) -> Package:
    """The package of a promoted model: the one that was made before, or a new one.

    Args:
        record: the line of its promotion. card: in place of the card that training wrote.

    Raises:
        LpoError: if the model's files are missing or changed, or a file is neither safetensors nor text.
    """
    name = record["name"]
    target = PACKAGES / name
    if not target.exists():
        source = check_files(name)
        with atomic_folder(target) as folder:
            shutil.copyfile(source / WEIGHTS, folder / WEIGHTS)
            found = card or source / CARD
            if found.exists():
                shutil.copyfile(found, folder / CARD)
            write_json(folder / EVALUATION, record["metrics"])
            write_json(
                folder / LINEAGE, {key: record[key] for key in ("name", "time", "against", "reason", "made_from")}
            )
            if reward is not None:
                shutil.copytree(reward, folder / REWARD, copy_function=shutil.copyfile)
            check_safe(folder)
    return Package(name, target, record)


def check_safe(folder: Path) -> None:
    """Raises LpoError for files that are neither safetensors nor text: a pickle runs code where it is loaded."""
    bad = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _safe(path)]
    if bad:
        names = ", ".join(path.relative_to(folder).as_posix() for path in bad)
        raise LpoError(
            f"neither safetensors nor text: {names}", str(folder), "remove it from data/tuned or data/reward"
        )


def _safe(path: Path) -> bool:
    if path.suffix != ".safetensors":
        return path.suffix in TEXT
    try:
        with safe_open(path, "numpy"):
            return True
    except (SafetensorError, OSError):
        return False


def clear(keep: str | None) -> None:
    """Remove the packages of all models but one."""
    for folder in PACKAGES.iterdir() if PACKAGES.exists() else ():
        if folder.name != keep:
            shutil.rmtree(folder)


def _numbers(node: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _numbers(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield path, float(node)
