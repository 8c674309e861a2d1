"""Modules that wait in host memory: on a machine without a GPU, the host stands for it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lpo.train.common import offload

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_weights_are_copied_to_the_host_once_and_come_back_as_they_were():
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).requires_grad_(False).eval()
    module.to(memory_format=torch.channels_last)
    x, weight = torch.randn(1, 3, 5, 5), module[0].weight
    before, place = module(x), weight.data_ptr()
    held = []
    for _ in range(2):
        offload.leave([module])
        held.append([tensor.data_ptr() for tensor in (weight, module[1].running_mean)])
        offload.come_back([module], CPU)
        assert torch.equal(module(x), before) and module[0].weight is weight
    assert held[0] == held[1] and held[0][0] != place and weight.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="trains"):
        offload.leave([torch.nn.Linear(2, 2)])


def test_they_go_the_first_time_and_then_only_where_memory_is_short(monkeypatch):
    """A module of 400 bytes on a GPU of 1000, of which 900 may be in use; a purpose that used 300, then one of 600."""
    module, calls, used = torch.nn.Linear(10, 10, bias=False).requires_grad_(False), [], []
    monkeypatch.setattr(offload, "_PEAKS", {})
    monkeypatch.setattr(offload, "leave", lambda _: calls.append("left"))
    monkeypatch.setattr(offload, "come_back", lambda *_: calls.append("back"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=1000))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: used[-1])
    for purpose, bytes_used, went in [
        ("rollout", 300, True), ("updates", 600, True), ("rollout", 600, False), ("updates", 600, True),
    ]:  # fmt: skip
        used.append(bytes_used)
        with offload.away([module], CUDA, purpose):
            pass
        assert calls == (["left", "back"] if went else [])
        calls.clear()
    with pytest.raises(InterruptedError), offload.away([module], CUDA, "updates"):
        raise InterruptedError
    assert calls == ["left", "back"]
    with offload.away([module], CPU, "anything"):
        assert calls == ["left", "back"]
