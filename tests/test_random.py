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


def test_a_prompt_draws_its_own_noise_whichever_process_has_it():
    def draw(rows):
        return random.normal(random.of_prompts(random.generator(0, "a"), 5, torch.tensor(rows)), 2, 3)

    together = draw([0, 1, 2, 3, 4])
    assert together.shape == (5, 2, 3) and len(set(together.flatten().tolist())) == 30
    assert torch.equal(together[3:], draw([3, 4]))
