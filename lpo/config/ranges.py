"""What a number of params.yaml may be."""

from __future__ import annotations

from typing import Annotated

from lpo.config.reader import Range

Count = Annotated[int, Range(at_least=1)]
ZeroOrMore = Annotated[int, Range(at_least=0)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(at_least=0)]
Share = Annotated[float, Range(at_least=0, at_most=1)]
Decay = Annotated[float, Range(at_least=0, below=1)]
Guidance = Annotated[float, Range(at_least=1)]  # 1 turns it off
