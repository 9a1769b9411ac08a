"""The small networks that run on the device. ``forward``: standardised (B, 3, h, w) -> logits (B, N).

All are made of convolutions, batch norm, ReLU-like activations, pooling and one linear layer: what int8 runtimes fuse.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinyforge.device.spec import InputSpec
from tinyforge.errors import RecipeError

SMALLEST_INPUT = 8


class Conv4(nn.Module):
    """4 x [3x3 convolution 64, batch norm, ReLU, 2x2 max-pool], flattened, linear.

    112,832 parameters before the linear layer. Flattened (64 x 2 x 2 at 32 px), as in the literature: where a stroke is
    tells characters apart. Below 16 px the last pools, which would have nothing to pool, are left out.
    Source: Vinyals et al. 2016, arXiv 1606.04080; Snell et al. 2017, arXiv 1703.05175.
    Differs: no convolution bias, which batch norm would cancel.
    """

    def __init__(self, num_classes: int, input_size: int, width: int = 64) -> None:
        super().__init__()
        sizes = [input_size // 2**k for k in range(4)]
        channels = (3, width, width, width)
        self.blocks = nn.Sequential(
            *(_conv4_block(c, width, size >= 2) for c, size in zip(channels, sizes, strict=True))
        )
        side = max(1, input_size // 16)
        self.head = nn.Linear(width * side * side, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.blocks(x), 1))


def _conv4_block(fan_in: int, fan_out: int, pool: bool) -> "_Conv4Block":
    layers = [nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=False), nn.BatchNorm2d(fan_out)]
    return _Conv4Block(*layers, nn.ReLU(), *([nn.MaxPool2d(2)] if pool else []))


class _Conv4Block(nn.Sequential):
    """Convolution, batch norm, ReLU and perhaps a max-pool.

    In training in another order, which gives the same with less memory traffic: ReLU after the pool, which it leaves as
    it is, and a batch norm that keeps its statistics as part of the convolution (hooks on these two are not called).
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        convolution, norm, relu, *pool = self
        x = norm(convolution(x)) if norm.training else _at_once(convolution, norm, x)
        return relu(pool[0](x) if pool else x)


def _at_once(convolution: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """A convolution and its batch norm, which keeps its statistics, in one pass."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    weight, bias = convolution.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale
    return F.conv2d(x, weight, bias, convolution.stride, convolution.padding)


class ResNet12(nn.Module):
    """Four residual blocks of 64-160-320-640 channels, each with three 3x3 convolutions; mean over space; linear.

    Source: Lee et al. 2019 (MetaOptNet), arXiv 1904.03758; Tian et al. 2020 (RFS), arXiv 2003.11539.
    Differs: no DropBlock.
    """

    def __init__(self, num_classes: int, input_size: int, widths: tuple[int, ...] = (64, 160, 320, 640)) -> None:
        super().__init__()
        sizes = [input_size // 2**k for k in range(len(widths))]
        channels = (3, *widths[:-1])
        self.blocks = nn.Sequential(
            *(_ResidualBlock(*io, size >= 2) for *io, size in zip(channels, widths, sizes, strict=True))
        )
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean(dim=(2, 3)))


class _ResidualBlock(nn.Module):
    """Three 3x3 convolutions beside a 1x1 one, leaky ReLU, 2x2 max-pool where there are 2 pixels to pool."""

    def __init__(self, fan_in: int, fan_out: int, pool: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for position, channels in enumerate((fan_in, fan_out, fan_out)):
            layers += [nn.Conv2d(channels, fan_out, 3, padding=1, bias=False), nn.BatchNorm2d(fan_out)]
            layers += [nn.LeakyReLU(0.1)] if position < 2 else []
        self.body = nn.Sequential(*layers)
        self.shortcut = nn.Sequential(nn.Conv2d(fan_in, fan_out, 1, bias=False), nn.BatchNorm2d(fan_out))
        self.tail = nn.Sequential(nn.LeakyReLU(0.1), *([nn.MaxPool2d(2)] if pool else []))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.body(x) + self.shortcut(x))


STUDENTS: dict[str, Callable[[int, int], nn.Module]] = {"conv4": Conv4, "resnet12": ResNet12}


def build_student(
    name: str, num_classes: int, *, input_size: int, pretrained: bool = False, offline: bool = True
) -> nn.Module:
    """A fresh student, random by torch's global generator (see ``train.seeded_student``), or with timm's weights.

    name: one of STUDENTS or 'timm:<model>'. input_size: pixels, square. Raises RecipeError, MissingError.
    """
    if num_classes < 1 or input_size < SMALLEST_INPUT:
        raise RecipeError(
            f"a student needs at least 1 class and {SMALLEST_INPUT} px, not {num_classes} and {input_size}"
        )
    check_student(name, pretrained=pretrained)
    if name.startswith("timm:"):
        return _timm_student(name.removeprefix("timm:"), num_classes, input_size, pretrained, offline)
    return STUDENTS[name](num_classes, input_size)


def check_student(name: str, *, pretrained: bool = False) -> None:
    """Raise RecipeError for a student that there is not, or not with pretrained weights. Builds nothing."""
    if name.startswith("timm:"):
        from tinyforge.distill.timm_models import check_name

        check_name(name.removeprefix("timm:"))
    elif name not in STUDENTS:
        raise RecipeError(
            f"no student {name!r}; there are {', '.join(STUDENTS)} and 'timm:<model>'{_did_you_mean(name)}"
        )
    elif pretrained:
        raise RecipeError(
            f"student {name!r} has no pretrained weights; set distill.pretrained = false or use a 'timm:' student"
        )


def default_spec(name: str, input_size: int) -> InputSpec:
    """How images become this student's input: whole, bicubic, with the mean and std of its timm weights, else 0.5."""
    if not name.startswith("timm:"):
        return InputSpec(size=(input_size, input_size))
    import timm

    from tinyforge.distill.timm_models import check_name

    model = name.removeprefix("timm:")
    check_name(model)
    config = timm.get_pretrained_cfg(model)
    if config is None:
        return InputSpec(size=(input_size, input_size))
    return InputSpec(size=(input_size, input_size), mean=tuple(config.mean), std=tuple(config.std))


def _timm_student(model: str, num_classes: int, input_size: int, pretrained: bool, offline: bool) -> nn.Module:
    from tinyforge.distill.timm_models import create, find_weights

    weights = find_weights(model, offline=offline) if pretrained else None
    return create(model, num_classes=num_classes, input_size=input_size, weights=weights)


def _did_you_mean(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, STUDENTS, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
