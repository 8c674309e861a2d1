"""Weights of published files in models of our own."""

from __future__ import annotations

import gc
import weakref
from collections.abc import ItemsView
from pathlib import Path

import pytest
import torch
from torch import nn

from lpo.errors import LpoError
from lpo.hub import fill, weights_of


def test_a_model_drops_its_own_weights_before_it_takes_others(tmp_path: Path) -> None:
    """From a file in half precision, which may be deleted afterwards."""
    source, model = nn.Linear(3, 2).half(), nn.Linear(3, 2)
    torch.save(source.state_dict(), tmp_path / "model.pt")
    own = weakref.ref(model.weight)

    class Watched(dict[str, torch.Tensor]):
        def items(self) -> ItemsView[str, torch.Tensor]:
            gc.collect()
            assert own() is None, "both are in memory"
            return super().items()

    filled = fill(model, Watched(weights_of(tmp_path / "model.pt")), "model.pt")
    (tmp_path / "model.pt").unlink()
    assert filled is model and not any(weight.requires_grad for weight in filled.parameters())
    assert filled.weight.dtype == torch.float32 and torch.equal(filled.weight, source.weight.float())
    seen = torch.ones(1, 3)
    assert torch.equal(filled(seen), nn.functional.linear(seen, source.weight.float(), source.bias.float()))


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_both_formats_of_torch_are_read(tmp_path: Path, zipped: bool) -> None:
    weights = {"a": torch.arange(6.0).reshape(2, 3)}
    torch.save(weights, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    assert torch.equal(weights_of(tmp_path / "model.pt")["a"], weights["a"])


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(LpoError, match="don't fit"):
        fill(nn.Linear(3, 2), nn.Linear(4, 2).state_dict(), "model.pt")
