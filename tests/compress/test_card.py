"""README.md of a bundle: what is shown of its record, as Markdown that renders."""

import pytest

from tinyforge.compress.card import model_card

LATENCY = {"p50_ms": 0.1, "p90_ms": 0.2, "p99_ms": None, "runs": 64, "peak_rss_mib": 50.0, "machine": {"cpu": "Xeon"}}


def record(**more):
    return {
        "name": "mugs",
        "target": "raspi4",
        "classes": ["cup"],
        "threads": 4,
        "model": {
            "chosen": "onnx-int8",
            "variants": {"onnx-int8": {"precision": "int8", "runtime": "onnxruntime", "files": [{"bytes": 2048}]}},
        },
        "certificate": {"statement": "top-1 >= 61.3 % at 95 % (n = 40); p90 <= 0.2 ms"},
        "scores": {},
        "latency": {"onnx-int8": {**LATENCY, "threads": 2}},
        "input": {"size": [8, 8], "fit": "stretch", "resize": "bicubic", "mean": [0.5], "std": [0.5], "layout": "NCHW"},
        "licences": [{"name": "tinyforge_device", "licence": "Apache-2.0"}],
        **more,
    }


def test_the_threads_are_those_that_ran():
    assert "Inference of one image, 2 threads (4 asked for), on Xeon." in model_card(record(), [])
    alone = record(threads=1, latency={"onnx-int8": {**LATENCY, "threads": 1}})
    assert "Inference of one image, 1 thread, on Xeon." in model_card(alone, [])


def test_the_card_says_how_to_choose_on_the_board():
    assert model_card(record(), []).count("python -m tinyforge_device bench . --variant all") == 2


def test_nothing_is_escaped_that_needs_no_escape():
    card = model_card(record(), ["Measure again with `tinyforge bench <bundle>`: snake_case is 2 < 3."])
    assert "top-1 >= 61.3 % at 95 % (n = 40); p90 <= 0.2 ms." in card
    assert "- Measure again with `tinyforge bench <bundle>`: snake_case is 2 < 3.\n" in card
    assert "- tinyforge_device: Apache-2.0\n" in card
    assert "\\" not in card


@pytest.mark.parametrize("title", ["Use", "Certificate", "Limits", "Licences", "Files"])
def test_every_section_is_set_off_by_blank_lines(title):
    assert f"\n\n## {title}\n\n" in model_card(record(), ["A note."])


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("<b>", "\\<b>"),
        ("_x_", "\\_x\\_"),
        ("a*b|c", "a\\*b\\|c"),
        ("[x](y)", "\\[x\\](y)"),
        ("`x`", "\\`x\\`"),
        ("# x\ny", "\\# x y"),
    ],
)
def test_markup_of_the_user_is_text(name, shown):
    assert f"1 class: {shown}.\n" in model_card(record(classes=[name]), [])
