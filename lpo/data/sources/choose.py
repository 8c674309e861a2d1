"""The source that `dataset.source` names."""

from __future__ import annotations

from pathlib import Path

from lpo.config import Dataset
from lpo.data.download import Store, open_store
from lpo.data.sources import Part, hpdv2, hpdv3, index, pickapic
from lpo.paths import SOURCES

REPOSITORIES = pickapic.REPOSITORIES | {"hpdv2": hpdv2.REPOSITORY, "hpdv3": hpdv3.REPOSITORY}  # on the hub
FILES = {  # of a source, as patterns of their names; of the others, shards
    "hpdv2": ("train.json", "test.json"),
    "hpdv3": ("train.json", "test.json", "images.tar.gz*"),
}


def repository_of(config: Dataset) -> str | None:
    """The hub repository of the source: its own or the mirror that is named. None for a folder and simulated pairs."""
    if config.path is not None or config.source not in REPOSITORIES:
        return None
    return config.repository or REPOSITORIES[config.source]


def folder_of(config: Dataset) -> Path:
    """Where the files of that repository are downloaded to. A mirror has a folder of its own."""
    return SOURCES / (config.repository.replace("/", "--") if config.repository else config.source)


def store_of(config: Dataset) -> Store:
    """The files of the source, here or on the hub. Raises LpoError if a folder was not imported or changed since."""
    if config.source == "folder":
        index.check(Path(str(config.path)), f"lpo data import TABLE --out {config.path}")
    if config.path is not None:
        return open_store(config.path, None, config.revision)
    return open_store(folder_of(config), repository_of(config), config.revision)


def parts_of(store: Store, config: Dataset) -> list[Part]:
    """The source as pieces of work, for `lpo.data.sources.convert`."""
    if config.source in ("hpdv2", "hpdv3"):
        module = hpdv2 if config.source == "hpdv2" else hpdv3
        return module.parts(store, config.held_out_share, config.keep_downloads)
    return pickapic.parts(store, config.keep_downloads, config.are_different == "required")
