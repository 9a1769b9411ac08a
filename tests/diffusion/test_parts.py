"""Batches: even, and halved where the memory does not hold them."""

import pytest
import torch

from tinyforge.diffusion.ddim import add_noise
from tinyforge.diffusion.null_text import null_text_invert
from tinyforge.diffusion.parts import even_parts, in_parts, is_out_of_memory
from tinyforge.diffusion.sample import generate
from tinyforge.diffusion.textual_inversion import learn_concepts
from tinyforge.errors import MissingError
from tinyforge.recipe import Invert

SETTINGS = Invert(ti_steps=3, ti_batch_size=2, num_steps=3, nti_inner_steps=2, guidance_scale=3.0)


@pytest.mark.parametrize(("count", "most"), [(0, 4), (1, 4), (4, 4), (5, 4), (50, 32), (601, 64)])
def test_parts_are_few_even_and_complete(count, most):
    parts = even_parts(count, most)
    assert [i for part in parts for i in part] == list(range(count))
    assert len(parts) == -(-count // most)
    assert max(map(len, parts), default=0) <= most
    assert max(map(len, parts), default=0) - min(map(len, parts), default=0) <= 1


class SmallMemory:
    """A backbone that raises torch's own error for more images than it holds, as a GPU does."""

    def __init__(self, backbone, most):
        self.backbone, self.most, self.refused = backbone, most, 0

    def __getattr__(self, name):
        return getattr(self.backbone, name)

    def eps(self, z, t, cond):
        if len(z) > self.most:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.backbone.eps(z, t, cond)


def test_a_batch_that_does_not_fit_is_halved_until_it_does():
    taken = []

    def work(part):
        if len(part) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        taken.append(part)
        return list(part)

    assert [i for part in in_parts(work, 11, 8) for i in part] == list(range(11))
    assert max(map(len, taken)) <= 3


@pytest.mark.parametrize(
    "message",
    ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"],
)
def test_so_are_cuda_s_libraries(message):
    def large(part):
        if len(part) > 1:
            raise RuntimeError(message)
        return list(part)

    assert in_parts(large, 3, 3) == [[0], [1], [2]]


def test_the_cpu_s_allocator_is_understood_and_other_errors_pass():
    with pytest.raises(RuntimeError) as fault:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(fault.value)

    def wrong(part):
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="multiplied"):
        in_parts(wrong, 4, 4)


def test_every_algorithm_goes_on_with_smaller_batches_and_the_same_result(tiny64, images):
    small, latents, labels = SmallMemory(tiny64, 4), tiny64.encode(images.double()), torch.tensor([0, 0, 1, 1, 2, 2])
    one, _ = learn_concepts(tiny64, latents, labels, ["a", "b", "c"], SETTINGS, 0)
    two, _ = learn_concepts(small, latents, labels, ["a", "b", "c"], SETTINGS, 0)
    torch.testing.assert_close(two.embeddings, one.embeddings, rtol=0, atol=1e-9)
    cond = one.conditions(tiny64, SETTINGS.prompt)[labels]
    whole, parts = (null_text_invert(backbone, latents, cond, SETTINGS) for backbone in (tiny64, small))
    torch.testing.assert_close(parts.null_embeddings, whole.null_embeddings, rtol=0, atol=1e-7)
    drawn = [generate(b, whole.z_T, cond, whole.null_embeddings, SETTINGS) for b in (tiny64, small)]
    torch.testing.assert_close(drawn[1], drawn[0], rtol=0, atol=1e-7)
    assert small.refused >= 3


def test_when_one_image_is_too_much_the_message_says_what_to_do(tiny, images):
    latents = tiny.encode(images[:2])
    cond = tiny.embed(["a photo", "a photo"]).detach()
    with pytest.raises(MissingError, match=r"not even one image.*smaller backbone.*CUDA out of memory"):
        null_text_invert(SmallMemory(tiny, 0), latents, cond, SETTINGS)


def test_the_conditional_prediction_may_be_reused_and_guidance_stacked(tiny64, images):
    latents = tiny64.encode(images.double())
    cond = tiny64.embed(["a photo"] * 6).detach()
    plain = null_text_invert(tiny64, latents, cond, SETTINGS, reuse=False)
    fast = null_text_invert(tiny64, latents, cond, SETTINGS)
    torch.testing.assert_close(fast.null_embeddings, plain.null_embeddings, rtol=0, atol=1e-9)
    noisy = add_noise(latents, torch.randn_like(latents), tiny64.alphas_cumprod[torch.full((6,), 900)])
    drawn = [
        generate(tiny64, noisy, cond, plain.null_embeddings, SETTINGS, stacked=stacked) for stacked in (True, False)
    ]
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=1e-9)
