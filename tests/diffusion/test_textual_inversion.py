import pytest
import torch

from tinyforge.diffusion.textual_inversion import (
    Concept,
    SampleStream,
    initial_rows,
    learn_concepts,
    learning_rate,
    spread,
)
from tinyforge.errors import DataError, RecipeError
from tinyforge.recipe import Invert

from .gaussian import GaussianBackbone, normal

CLASSES = ["ape", "bee", "çédille 三"]
LABELS = torch.tensor([0, 0, 0, 1, 2, 2])
QUICK = Invert(ti_steps=6, ti_batch_size=2, num_vectors=2)


def learn(backbone, latents, labels=LABELS, classes=CLASSES, settings=QUICK, **options):
    return learn_concepts(backbone, latents, labels, classes, settings, seed=3, **options)


def test_the_learned_vector_converges_to_the_mean_of_the_supports():
    """With Gaussian data the loss is smallest exactly where the condition is the mean of the class's latents."""
    backbone = GaussianBackbone(shape=(3, 1, 1))
    latents = normal(6, *backbone.latent_shape)
    settings = Invert(ti_steps=1000, ti_batch_size=48, ti_lr=0.005)
    concept, history = learn(backbone, latents, settings=settings)
    means = torch.stack([latents[label == LABELS].mean(dim=0).flatten() for label in range(3)])
    torch.testing.assert_close(concept.embeddings[:, 0], means, rtol=0, atol=0.1)
    assert (concept.embeddings[:, 0] - means).abs().mean() < 0.04 < means.abs().mean()
    assert history.shape == (1000, 3)
    assert torch.all(history[-300:].mean(dim=0) < history[:300].mean(dim=0))


def test_classes_learned_together_are_classes_learned_alone(tiny64, images):
    latents = tiny64.encode(images.double())
    together, losses = learn(tiny64, latents)
    for index, name in enumerate(CLASSES):
        own = index == LABELS
        alone, own_losses = learn(tiny64, latents[own], torch.zeros(int(own.sum()), dtype=torch.long), [name])
        torch.testing.assert_close(together.embeddings[index], alone.embeddings[0], rtol=0, atol=1e-9)
        torch.testing.assert_close(losses[:, index], own_losses[:, 0])


def test_a_class_that_no_longer_improves_stops_and_keeps_its_best():
    """The loss is least at the mean of a class's latents: a rate that overshoots it is caught on the way."""
    backbone = GaussianBackbone(shape=(3, 1, 1))
    latents = normal(6, *backbone.latent_shape)
    means = torch.stack([latents[label == LABELS].mean(dim=0).flatten() for label in range(3)])
    how = {"ti_steps": 400, "ti_batch_size": 16, "ti_lr": 0.2}
    patient, history = learn(backbone, latents, settings=Invert(**how, ti_patience=30))
    stubborn, _ = learn(backbone, latents, settings=Invert(**how))
    last = [int((history[:, i] != history[-1, i]).nonzero().max()) + 2 for i in range(3)]
    assert all(30 <= steps < 400 and steps % 10 == 0 for steps in last), last
    errors = [(concept.embeddings[:, 0] - means).abs().mean() for concept in (patient, stubborn)]
    assert errors[0] < 2 * errors[1]


def test_classes_stop_each_for_itself(tiny64, images):
    latents = tiny64.encode(images.double())
    settings = Invert(ti_steps=60, ti_batch_size=2, ti_lr=0.3, ti_patience=10, ti_schedule="cosine")
    together, losses = learn(tiny64, latents, settings=settings)
    steps = [len(losses[:, index].unique()) for index in range(3)]
    assert len(set(steps)) > 1, steps  # so the classes really stop at different steps
    for index, name in enumerate(CLASSES):
        own = index == LABELS
        alone, own_losses = learn(tiny64, latents[own], torch.zeros(int(own.sum()), dtype=torch.long), [name], settings)
        torch.testing.assert_close(together.embeddings[index], alone.embeddings[0], rtol=0, atol=1e-8)
        torch.testing.assert_close(losses[:, index], own_losses[:, 0])


def test_the_rate_falls_to_nothing_along_half_a_cosine():
    settings = Invert(ti_steps=4, ti_lr=0.1, ti_schedule="cosine")
    rates = [learning_rate(settings, step) for step in range(4)]
    assert rates == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], rel=1e-5)
    assert learning_rate(Invert(ti_steps=4, ti_lr=0.1), 3) == 0.1


def test_classes_taken_in_groups_learn_the_same(tiny64, images):
    latents = tiny64.encode(images.double())
    whole, _ = learn(tiny64, latents)
    grouped, _ = learn(tiny64, latents, batch_size=1)
    torch.testing.assert_close(whole.embeddings, grouped.embeddings, rtol=0, atol=1e-9)


def test_single_precision_agrees_between_batch_and_alone(tiny, images):
    latents = tiny.encode(images)
    together, _ = learn(tiny, latents)
    alone, _ = learn(tiny, latents[LABELS == 1], torch.tensor([0]), ["bee"])
    torch.testing.assert_close(together.embeddings[1], alone.embeddings[0], rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tiny, images):
    latents = tiny.encode(images)
    first, second = learn(tiny, latents)[0], learn(tiny, latents)[0]
    assert first.to_files() == second.to_files()
    other, _ = learn_concepts(tiny, latents, LABELS, CLASSES, QUICK, seed=4)
    assert not torch.equal(first.embeddings, other.embeddings)


def test_only_the_rows_learn(tiny, images):
    before = {name: value.clone() for name, value in tiny.text_encoder.state_dict().items()}
    concept, _ = learn(tiny, tiny.encode(images))
    after = tiny.text_encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    modules = (tiny.unet, tiny.vae, tiny.text_encoder)
    assert all(p.grad is None and not p.requires_grad for module in modules for p in module.parameters())
    start = initial_rows(tiny, CLASSES, QUICK)
    assert concept.embeddings.shape == start.shape == (3, 2, 32)
    assert not concept.embeddings.requires_grad
    moved = (concept.embeddings - start).abs()
    assert 0 < moved.max() <= 6 * QUICK.ti_lr * 1.2  # Adam moves an element by at most about lr a step


def test_no_steps_leave_the_initial_word(tiny, images):
    concept, history = learn(tiny, tiny.encode(images), settings=Invert(ti_steps=0, initializer="cat"))
    vectors = tiny.word_vectors("cat")
    torch.testing.assert_close(concept.embeddings, vectors.mean(dim=0).expand(3, 1, 32))
    assert history.shape == (0, 3)


def test_progress_counts_the_steps_of_each_class(tiny, images):
    seen = []
    learn(tiny, tiny.encode(images), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(step, 18) for step in range(1, 19)]


def test_timesteps_stay_in_their_range_and_supports_take_turns():
    settings = Invert(ti_steps=50, ti_batch_size=4, ti_min_timestep=250, ti_max_timestep=260)
    stream = SampleStream(normal(5, 3, 2, 2), torch.Generator().manual_seed(0), "ape", settings)
    assert set(stream.timesteps.flatten().tolist()) == set(range(250, 260))
    assert torch.equal(stream.picks.flatten().bincount(), torch.full((5,), 40))


def test_each_class_may_start_from_its_own_words():
    settings = Invert(initializers={"bee": "high low", "ape": "high"}, num_vectors=2)
    rows = initial_rows(GaussianBackbone(shape=(1, 1, 2)), CLASSES, settings)
    assert rows[:, :, 0].tolist() == [[1.0, 1.0], [1.0, -1.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [1.5]), (2, [0.5, 2.5]), (3, [0.5, 2.0, 3.0]), (4, [0, 1, 2, 3]), (6, [0, 0, 1, 2, 2, 3])],
)
def test_words_are_spread_over_the_vectors(count, expected):
    assert spread(torch.arange(4.0)[:, None], count).flatten().tolist() == expected


def test_faults_name_their_fix(tiny, images):
    latents = tiny.encode(images)
    with pytest.raises(RecipeError, match=r"no token .*invert.initializer"):
        learn(tiny, latents, settings=Invert(ti_steps=1, initializer=" "))
    with pytest.raises(RecipeError, match=r"\['wasp'\]"):
        learn(tiny, latents, settings=Invert(ti_steps=1, initializers={"wasp": "insect"}))
    with pytest.raises(DataError, match="class 'bee' has no support"):
        learn(tiny, latents, labels=torch.tensor([0, 0, 0, 0, 2, 2]))


def test_a_concept_survives_its_files(tiny, images, tmp_path):
    concept, _ = learn(tiny, tiny.encode(images))
    concept.save(tmp_path)
    loaded = Concept.load(tmp_path)
    assert loaded.classes == tuple(CLASSES)
    assert loaded.placeholders == concept.placeholders
    assert torch.equal(loaded.embeddings, concept.embeddings)
    template = "A photo of an {}"
    assert torch.equal(loaded.conditions(tiny, template), concept.conditions(tiny, template))


def test_a_folder_without_a_concept_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a saved concept"):
        Concept.load(tmp_path)
    (tmp_path / "concept.json").write_text('{"classes": ["a"], "placeholders": ["<class-000>"]}')
    (tmp_path / "concept.safetensors").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="not a saved concept"):
        Concept.load(tmp_path)
