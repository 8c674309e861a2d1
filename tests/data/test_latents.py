import pytest
import torch

from lpo.data.latents import Latents, sample_latents, write_captions, write_moments, write_space
from lpo.errors import LpoError
from lpo.families.latent_space import LatentSpace

SPACE = LatentSpace(4, 8, 0.18215, 0.0, (0.5, -1.25))


def test_what_was_written_is_read_whatever_the_batches_and_shards(tmp_path):
    moments = torch.randn(23, 8, 2, 2).half().float()
    uids = [f"image-{i}" for i in range(23)]
    batches = [(uids[i : i + 5], moments[i : i + 5]) for i in range(0, 23, 5)]
    write_moments(tmp_path, batches, shard_size=7)
    write_captions(tmp_path, ["a", "b"])
    write_space(tmp_path, SPACE)
    latents = Latents(tmp_path)
    assert [len(s) for s in latents.shards] == [7, 7, 7, 2] and latents.shape == (4, 2, 2)
    order = [22, 0, 13, 6, 7]
    read = latents.moments(latents.places([uids[i] for i in order]))
    assert torch.equal(read, moments[order])
    assert latents.captions == ["a", "b"] and latents.caption_rows(["b", "a"]).tolist() == [1, 0]
    assert latents.space == SPACE


def test_an_unknown_image_and_an_empty_folder_say_what_to_do(tmp_path):
    with pytest.raises(LpoError, match="lpo encode"):
        Latents(tmp_path)
    write_moments(tmp_path, [(["x"], torch.zeros(1, 8, 2, 2))], 4)
    write_captions(tmp_path, ["a"])
    write_space(tmp_path, SPACE)
    with pytest.raises(LpoError, match="'y'"):
        Latents(tmp_path).places(["x", "y"])


def test_a_draw_is_mean_plus_std_noise():
    moments = torch.cat([torch.full((1, 4, 2, 2), 3.0), torch.full((1, 4, 2, 2), 2.0).log() * 2], dim=1)
    noise = torch.full((1, 4, 2, 2), 0.5)
    torch.testing.assert_close(sample_latents(moments, noise), torch.full((1, 4, 2, 2), 4.0))
