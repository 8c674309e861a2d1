import pytest
import torch

from lpo.diffusion.guidance import classifier_free


def test_scale_extrapolates_from_uncond_through_cond() -> None:
    uncond, cond = torch.tensor([[1.0, -2.0]]), torch.tensor([[2.0, 0.0]])
    assert torch.equal(classifier_free(uncond, cond, 0.0), uncond)
    assert torch.equal(classifier_free(uncond, cond, 1.0), cond)
    assert torch.equal(classifier_free(uncond, cond, 3.0), torch.tensor([[4.0, 4.0]]))


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="one shape"):
        classifier_free(torch.zeros(1, 3), torch.zeros(2, 3), 2.0)
