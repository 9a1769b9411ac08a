"""Plans for a GPU's memory: what they choose, and that none changes a result."""

import pytest
import torch

from tinyforge.diffusion.architectures import SD15
from tinyforge.diffusion.backbone import tiny_backbone
from tinyforge.diffusion.memory import ENOUGH, Needs, Plan, needs, plan_memory, plan_on_cpu, weight_bytes
from tinyforge.diffusion.null_text import null_text_invert
from tinyforge.diffusion.sample import generate
from tinyforge.diffusion.textual_inversion import learn_concepts
from tinyforge.recipe import Invert

SETTINGS = Invert(ti_steps=3, num_steps=3, nti_inner_steps=2, guidance_scale=3.0)
GIB = 2**30
SD15_NEEDS = Needs(3_438_000_000, 827_000_000, 492_000_000, 260 * 2**20, 1496 * 2**20, 471 * 2**20, 768 * 2**20)
HALF = Needs(*(value // 2 for value in vars(SD15_NEEDS).values()))


def planned(plan):
    return tiny_backbone(dtype="float64", plan=plan)


def made_with(backbone, images):
    """Everything that a build asks of a backbone."""
    z = backbone.encode(images.double())
    concept, losses = learn_concepts(backbone, z, torch.tensor([0, 0, 0, 1, 1, 1]), ["a", "b"], SETTINGS, 0)
    cond = concept.conditions(backbone, SETTINGS.prompt).repeat_interleave(3, dim=0)
    inverted = null_text_invert(backbone, z, cond, SETTINGS, batch_size=backbone.plan.batch_size)
    drawn = generate(
        backbone, inverted.z_T, cond, inverted.null_embeddings, SETTINGS, batch_size=backbone.plan.batch_size
    )
    return concept.embeddings, losses, inverted.null_embeddings, drawn


@pytest.mark.parametrize(
    "plan",
    [
        Plan(1),
        Plan(checkpoint_gradients=True),
        Plan(slice_vae=True),
        Plan(offload=True),
        Plan(channels_last=True),
        Plan(4, True, True, True, True),
    ],
)
def test_no_plan_changes_a_result(plan, images):
    for plain, other in zip(made_with(planned(Plan()), images), made_with(planned(plan), images), strict=True):
        torch.testing.assert_close(other, plain, rtol=0, atol=1e-7)


@pytest.mark.parametrize("gib", [8, 12, 24, 80])
@pytest.mark.parametrize("own", [SD15_NEEDS, HALF])
def test_a_plan_for_stable_diffusion_fits(gib, own):
    plan = plan_memory(gib * GIB, own)
    weights = own.unet + (own.visitor if plan.offload else own.others)
    image = max(own.guided, own.checkpointed if plan.checkpoint_gradients else own.gradient)
    assert weights + plan.batch_size * image <= gib * GIB
    assert plan.slice_vae or weights + plan.batch_size * own.decoding <= gib * GIB


def test_more_memory_means_fewer_savings_or_more_images_and_at_last_no_saving():
    plans = [plan_memory(gib * GIB, HALF) for gib in (4, 8, 12, 24, 80)]
    ranks = [(-plan.offload - plan.checkpoint_gradients - plan.slice_vae, plan.batch_size) for plan in plans]
    assert ranks == sorted(ranks)
    assert plans[-1].batch_size >= ENOUGH
    assert not plans[-1].offload
    assert not plans[-1].checkpoint_gradients


def test_where_nothing_fits_the_most_is_saved_and_one_image_tried():
    assert plan_memory(GIB, SD15_NEEDS) == Plan(1, checkpoint_gradients=True, slice_vae=True, offload=True)


def test_what_waits_on_the_cpu_travels_and_changes_nothing(images, monkeypatch):
    """Here a visit copies the weights, as one to another device does."""
    visits = []

    def travel(module, device):
        visits.append((type(module).__name__, str(device)))
        return module._apply(lambda x: x.clone())

    travelling = planned(Plan(offload=True))
    for module in (travelling.vae, travelling.text_encoder):
        monkeypatch.setattr(type(module), "to", travel)
    made = made_with(travelling, images)
    monkeypatch.undo()
    for plain, other in zip(made_with(planned(Plan()), images), made, strict=True):
        torch.testing.assert_close(other, plain, rtol=0, atol=1e-7)
    assert {name for name, _ in visits} == {"AutoencoderKL", "CLIPTextModel"}


def test_a_cpu_has_as_many_images_at_once_as_its_memory_holds():
    assert plan_on_cpu(None, SD15_NEEDS, 2) == plan_on_cpu(10**12, SD15_NEEDS, 4) == Plan()
    assert [plan_on_cpu(20 * GIB, SD15_NEEDS, hands) for hands in (1, 2)] == [Plan(11), Plan(5)]
    assert plan_on_cpu(1, SD15_NEEDS, 4) == Plan(1)


def test_needs_are_counted_and_scaled(tiny):
    own = needs(tiny.unet, tiny.vae, tiny.text_encoder)
    assert own.unet == weight_bytes(tiny.unet) == 4 * sum(p.numel() for p in tiny.unet.parameters())
    assert own.others == weight_bytes(tiny.vae) + weight_bytes(tiny.text_encoder)
    assert 0 < own.checkpointed < own.gradient < 2**20
    assert SD15.unet["sample_size"] == 64  # what the figures of an image are scaled from
