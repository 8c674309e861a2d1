"""The library's source as a graph of imports. Files are parsed, not imported."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def imports(path: Path) -> list[tuple[int, str, bool]]:
    """(line, module, whether at the top level) of every import; `from lpo.x import y` gives lpo.x.y."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            own = str(node.module).split(".")[0] == "lpo"
            modules = [f"{node.module}.{alias.name}" if own else str(node.module) for alias in node.names]
        else:
            continue
        found += [(node.lineno, module, node in tree.body) for module in modules]
    return found


def file_of(module: str) -> Path | None:
    """The file of lpo that holds lpo.x.y, which is a module or a name in one."""
    for parts in (module.split("."), module.split(".")[:-1]):
        path = ROOT.joinpath(*parts)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.exists():
                return file
    return None


def library(path: Path, at_the_top: bool = False) -> set[Path]:
    """The other files of lpo that a file imports."""
    modules = [module for _, module, top in imports(path) if module.startswith("lpo.") and (top or not at_the_top)]
    return {file for module in modules if (file := file_of(module))} - {path}


def reached(path: Path) -> set[Path]:
    """A file, the files of lpo that it imports, those that they import, and so on."""
    seen, todo = {path}, [path]
    while todo:
        new = library(todo.pop()) - seen
        seen |= new
        todo += new
    return seen
