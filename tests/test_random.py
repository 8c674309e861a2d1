import torch

from lpo import random


def test_a_generator_depends_on_its_three_arguments_alone():
    def draw(*key):
        return torch.rand(4, generator=random.generator(*key))

    torch.manual_seed(0)
    first = draw(1, "a", 2)
    torch.manual_seed(5)
    assert torch.equal(first, draw(1, "a", 2))
    others = [draw(2, "a", 2), draw(1, "b", 2), draw(1, "a", 3)]
    assert not any(torch.equal(first, other) for other in others)
    assert random.numpy_generator(1, "a", 2).random() == random.numpy_generator(1, "a", 2).random()
