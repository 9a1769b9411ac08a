import onnx
import pytest
from torch import nn

from tinyforge.compress.export import convert_openvino, export_onnx
from tinyforge.compress.layers import excluded, first_and_last, gates, onnx_graph, openvino_graph, swishes


class Gated(nn.Module):
    """Convolution, squeeze-and-excitation, hard-swish, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.squeeze, self.excite = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.swish, self.last = nn.Hardswish(), nn.Linear(8, 10)

    def forward(self, x):
        x = self.first(x)
        gate = nn.functional.hardsigmoid(self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()))
        return self.last(self.swish(x * gate).mean((2, 3)))


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def graph(request, spec, metadata, tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "gated.onnx"
    export_onnx(Gated().eval(), spec, path, opset=18, metadata=metadata)
    return onnx_graph(onnx.load(path)) if request.param == "onnx" else openvino_graph(convert_openvino(path))


def kinds(graph, names):
    return sorted(graph[name].kind for name in names)


def test_first_and_last_layer(graph):
    found = first_and_last(graph)
    assert len(found) == 2
    assert kinds(graph, found)[0] in ("Conv", "Convolution")
    assert kinds(graph, found)[1] in ("Gemm", "MatMul")


def test_squeeze_and_excitation_is_found_from_pooling_to_product(graph):
    found = kinds(graph, gates(graph))
    assert sum(kind in ("Conv", "Convolution") for kind in found) == 2
    assert sum(kind in ("HardSigmoid", "HSigmoid") for kind in found) == 1
    assert sum(kind == "ReduceMean" for kind in found) == 1  # its own pooling, not the classifier's
    assert sum(kind in ("Mul", "Multiply") for kind in found) == 1


def test_hard_swish_is_found(graph):
    assert kinds(graph, swishes(graph)) in (["HardSwish"], ["HSwish"])


def test_a_network_without_any_has_none(materials):
    plain = onnx_graph(onnx.load(materials.fp32))
    assert gates(plain) | swishes(plain) == set()
    assert excluded(plain, {"first and last", "hard-swish"}) == first_and_last(plain)
