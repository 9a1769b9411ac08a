"""Practice in episodes: what is drawn, what is lost, and that it can be interrupted."""

import pytest
import torch

from tinyforge.device.spec import InputSpec
from tinyforge.distill import episodes
from tinyforge.distill.batches import generator_for
from tinyforge.distill.episodes import draw, episode_loss, practise
from tinyforge.distill.students import build_student
from tinyforge.recipe import Distill

SIZE = 16
SETTINGS = Distill(batch_size=40, augment="light", ema_decay=0.5, lr=0.01, dtype="float32")


def test_an_episode_is_class_by_class_and_its_shots_vary():
    members = [torch.arange(start, start + 10) for start in (0, 10, 20, 30)]
    seen = set()
    for seed in range(20):
        rows, ways, shots = draw(members, 40, generator_for(seed))
        seen.add(shots)
        assert ways == min(4, 40 // (shots + 4))
        classes = (rows // 10).view(ways, shots + 4)
        assert (classes == classes[:, :1]).all()
        assert len(set(classes[:, 0].tolist())) == ways
    assert seen == {1, 5}


def test_the_loss_is_that_of_cosines_to_class_means():
    features = torch.eye(4)[[0, 1, 0, 2, 3, 2]].view(2, 3, 4)  # 2 shots, then a query
    cosine = 0.5**0.5
    expected = torch.nn.functional.cross_entropy(
        10 * cosine * torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    )
    torch.testing.assert_close(episode_loss(features, 2), expected)
    assert episode_loss(features.flip(1), 2) > 0


def run(folder, steps=6, **how):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (30, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    labels = torch.arange(30) % 3
    torch.manual_seed(0)
    student = build_student("conv4", 3, input_size=SIZE)
    head = student.head.weight.clone()
    losses = practise(student, pixels, labels, InputSpec((SIZE, SIZE)), SETTINGS, steps, folder, seed=0, **how)
    assert torch.equal(student.head.weight, head)
    assert all(value.is_contiguous() for value in student.parameters())
    return student.state_dict(), losses


def test_practice_changes_the_body_and_an_interrupted_one_ends_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(episodes, "SAVE_EVERY", 2)
    whole, losses = run(tmp_path / "whole")
    assert len(losses) == 6

    def stop(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", progress=stop)
    continued, rest = run(tmp_path / "parts")
    assert rest == losses[4:]
    assert all(torch.equal(value, continued[name]) for name, value in whole.items())
    other, _ = run(tmp_path / "parts", steps=7)
    assert not torch.equal(other["blocks.0.0.weight"], whole["blocks.0.0.weight"])
