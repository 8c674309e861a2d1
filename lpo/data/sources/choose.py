"""The source that `dataset.source` names."""

from __future__ import annotations

from pathlib import Path

from lpo.config import Dataset
from lpo.data.download import Store, open_store
from lpo.data.sources import Part, hpdv2, index, pickapic
from lpo.paths import SOURCES

REPOSITORIES = pickapic.REPOSITORIES | {"hpdv2": hpdv2.REPOSITORY}  # on the hub


def store_of(config: Dataset) -> Store:
    """The files of the source, here or on the hub. Raises LpoError if a folder was not imported or changed since."""
    if config.source == "folder":
        index.check(Path(str(config.path)), f"lpo data import TABLE --out {config.path}")
    if config.path is not None:
        return open_store(config.path, None, config.revision)
    return open_store(SOURCES / config.source, REPOSITORIES[config.source], config.revision)


def parts_of(store: Store, config: Dataset) -> list[Part]:
    """The source as pieces of work, for `lpo.data.sources.convert`."""
    if config.source == "hpdv2":
        return hpdv2.parts(store, config.held_out_share, config.keep_downloads)
    return pickapic.parts(store, config.keep_downloads, config.are_different == "required")
