"""Errors for people: what is wrong, where it is, and what to do about it.

The command line prints an `LpoError` without a traceback and exits with 2. Any other exception is a bug of ours and
keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class LpoError(Exception):
    """A mistake that the reader of the message can fix.

    Args:
        what: one sentence that says what is wrong, with the value that was found.
        where: a file, a column, a YAML path, a row.
        remedy: what to do next: a command or a value. It is printed after the label `fix:`.
    """

    def __init__(self, what: str, where: str = "", remedy: str = "") -> None:
        super().__init__(what, where, remedy)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.remedy:
            lines.append(f"  fix: {self.remedy}")
        return "\n".join(lines)


class NotFinite(LpoError):
    """Numbers became NaN or infinite where they must not. A training that raises it keeps what it learned before."""


class ConfigError(LpoError):
    """Every mistake of one params.yaml at once.

    Args:
        mistakes: lines such as "params.yaml: tune.beta: must be > 0, is -3".
        where: the file.
    """

    def __init__(self, mistakes: Sequence[str], where: str = "") -> None:
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        what = "\n".join([f"{count} in the parameters:", *(f"  {line}" for line in mistakes)])
        super().__init__(what, where, "change the named lines; nothing was run")
        self.mistakes = list(mistakes)

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str], str]]:
        # Exception pickles with the base's three arguments, which are not ours.
        return type(self), (self.mistakes, self.where)
