"""A folder, such as a network share: FOLDER/NAME is the package, FOLDER/promoted.json names the model in use."""

from __future__ import annotations

import shutil
from pathlib import Path

from lpo.errors import LpoError
from lpo.files import atomic_folder, write_json
from lpo.publish.package import Package
from lpo.registry.ledger import name_of


def push(package: Package, place: str) -> str:
    """Copy the package, then let promoted.json name it. A copy that is there already stays as it is.

    Raises:
        LpoError: if FOLDER/NAME holds other weights.
    """
    target = Path(place) / package.name
    if not target.exists():
        with atomic_folder(target) as folder:
            shutil.copytree(package.folder, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    elif name_of(target) != package.name:
        raise LpoError("other weights are there under the name of this model", str(target), "move that folder away")
    write_json(Path(place) / "promoted.json", {"name": package.name, "time": package.record["time"]})
    return str(target)
