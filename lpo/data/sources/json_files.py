"""Sources of train.json and test.json, each one JSON array, with their images in archives.

parts = json_parts(store, pairs_of, rows)              ITEMS items a part; a share of train is held out for validation
folder = unpacked(store, store.folder / "images", ["images.tar.gz.00", "images.tar.gz.01"], keep)
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lpo.data.captions import split_of_caption
from lpo.data.download import Store
from lpo.data.sources import Left, Pair, Part
from lpo.errors import LpoError
from lpo.files import atomic_folder

ITEMS = 20_000  # of a file in one part
CHUNK = 2**20  # characters read at once
ITEM_LIMIT = 2**24  # characters of one item; what is longer is not JSON
Rows = Callable[[Path, str, int, Counter[str]], Iterator[Pair | Left]]  # file, its name, first item, pairs by prompt


def json_parts(store: Store, pairs_of: Callable[[Any], int], rows: Rows) -> list[Part]:
    """Parts of `ITEMS` items, those of test first.

    Args:
        pairs_of: how many pairs an item with a prompt holds.

    Raises:
        LpoError: if one of the two files is absent or no JSON array.
    """
    found = []
    for name, splits in (("test", ("test",)), ("train", ("train", "validation"))):
        path = store.get(store.names(f"{name}.json")[0])
        counts: Counter[str] = Counter()
        items = 0
        for item in iter_array(path):
            items += 1
            if isinstance(item, dict) and isinstance(item.get("prompt"), str):
                counts[item["prompt"]] += pairs_of(item)
        for start in range(0, items, ITEMS):
            found.append(Part(f"{start // ITEMS:05d}", splits, partial(rows, path, name, start, counts)))
    return found


def split_of(name: str, prompt: str, held_out_share: float) -> str:
    """The split of a prompt of a file: of train, the share that the rule for three splits would give to its test."""
    if name == "test":
        return "test"
    return "validation" if split_of_caption(prompt, held_out_share) == "test" else "train"


def iter_array(path: Path) -> Iterator[Any]:
    """Items of a JSON array, one at a time, so that a file of any size needs little memory.

    Raises:
        LpoError: if the file is not a whole JSON array.
    """
    try:
        yield from _items(path)
    except UnicodeDecodeError as error:
        raise LpoError("the file is not UTF-8", str(path), "download it again") from error


def _items(path: Path) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8-sig") as file:
        text, at, end = file.read(CHUNK).lstrip(), 1, False
        if not text.startswith("["):
            raise LpoError("the file is not a JSON array", str(path), "download it again")
        while True:
            while at < len(text) and text[at] in " \t\r\n,":
                at += 1
            if text[at : at + 1] == "]":
                return
            try:
                item, after = decoder.raw_decode(text, at)
                if after == len(text) and not end:  # a number may go on in the next chunk
                    raise ValueError
            except (ValueError, RecursionError) as error:
                more = file.read(CHUNK) if len(text) - at < ITEM_LIMIT else ""
                if end := not more:
                    where = f"{path}, character {file.tell()}"
                    raise LpoError("the JSON array breaks off", where, "damaged: download it again") from error
                text, at = text[at:] + more, 0
                continue
            yield item
            at = after


def unpacked(store: Store, folder: Path, pieces: Sequence[str], keep: bool) -> Path:
    """The folder, made from a .tar.gz in one or more pieces if it is not there. With `keep` false the pieces then go.

    Raises:
        LpoError: if a piece is absent, or the archive is damaged or leaves its folder.
    """
    if folder.is_dir():
        return folder
    paths = [store.get(piece) for piece in pieces]
    try:
        with (
            atomic_folder(folder) as partial_,
            io.BufferedReader(Joined(paths)) as stream,
            gzip.open(stream) as plain,  # unlike tarfile's own reader, it checks the sum at the end
            tarfile.open(fileobj=plain, mode="r|") as tar,
        ):
            for member in tar:
                if member.isfile():  # no links, no devices
                    tar.extract(member, partial_, filter="data")  # refuses names that leave the folder
            while plain.read(CHUNK):
                pass
    except (tarfile.TarError, zlib.error, OSError, EOFError) as error:
        where = str(paths[0]) if len(paths) == 1 else f"{paths[0]} to {paths[-1].name}"
        raise LpoError(f"the archive cannot be unpacked: {error}", where, "damaged: download it again") from error
    if not keep:
        for piece in pieces:
            store.forget(piece)
    return folder


class Joined(io.RawIOBase):
    """Files one after the other, as one stream."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.rest = list(paths)
        self.file = self.rest.pop(0).open("rb")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not (count := self.file.readinto(buffer)) and self.rest:
            self.file.close()
            self.file = self.rest.pop(0).open("rb")
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


def is_text(value: Any) -> bool:
    """Whether a text can be written as UTF-8; JSON may hold half a character."""
    try:
        str(value).encode()
    except UnicodeEncodeError:
        return False
    return True
