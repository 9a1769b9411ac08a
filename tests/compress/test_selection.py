import pytest

from tinyforge.compress.selection import Contender, choose_variant
from tinyforge.errors import GateError

ALLOWED = ["onnx-int8", "onnx-fp32", "openvino-int8"]
FAST = Contender("onnx-int8", 100, 1.0)
SLOW = Contender("onnx-fp32", 400, 3.0)


def choose(*contenders: Contender) -> tuple[str, dict[str, str]]:
    name, table = choose_variant(contenders, ALLOWED)
    assert [one.name for one in table] == [one.name for one in contenders]
    return name, {one.name: one.why_lost for one in table}


def test_the_fastest_wins_and_the_others_say_why():
    name, why = choose(SLOW, FAST)
    assert name == "onnx-int8"
    assert why == {"onnx-int8": "", "onnx-fp32": "3.00 times the latency of onnx-int8"}


def test_int8_loses_when_it_is_slower():
    assert choose(Contender("onnx-int8", 100, 3.1), SLOW)[0] == "onnx-int8"  # a tie: the smaller wins
    assert choose(Contender("onnx-int8", 100, 3.5), SLOW)[0] == "onnx-fp32"


def test_ties_go_to_the_smaller_file_then_to_the_preference_of_the_target():
    assert choose(FAST, Contender("openvino-int8", 90, 1.04))[0] == "openvino-int8"
    assert choose(FAST, Contender("openvino-int8", 90, 1.06))[0] == "onnx-int8"
    assert choose(Contender("openvino-int8", 100, 0.99), FAST)[0] == "onnx-int8"
    assert "1.11 times its size" in choose(FAST, Contender("openvino-int8", 90, 1.04))[1]["onnx-int8"]


@pytest.mark.parametrize(
    ("excluded", "why"),
    [
        (Contender("openvino-fp16", 1, 0.1), "not among the models this target may run"),
        (Contender("openvino-int8", 1, 0.1, reason="loses 3 %"), "failed its gate: loses 3 %"),
        (Contender("openvino-int8", 1, None), "its latency was not measured"),
    ],
)
def test_illegal_failed_and_unmeasured_models_never_win(excluded: Contender, why: str):
    name, table = choose(excluded, SLOW)
    assert name == "onnx-fp32"
    assert table[excluded.name] == why


def test_none_eligible_is_an_error_with_every_reason():
    with pytest.raises(GateError, match=r"onnx-int8: failed its gate: bad; openvino-fp16: not among"):
        choose(Contender("onnx-int8", 1, 1.0, reason="bad"), Contender("openvino-fp16", 1, 1.0))
    with pytest.raises(GateError, match="none was made"):
        choose()
