import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tinyforge.device.stats import score
from tinyforge.report.html import (
    MAX_CELL,
    MAX_GRID_CLASSES,
    THUMBNAIL,
    ClassPictures,
    Report,
    axis,
    data_uri,
    most_confused,
    plain,
    render_report,
)

EVIL = "<script>alert('x')</script> & \"quotes\""


class Reader(HTMLParser):
    """Collects tags, attributes and text; fails on tags that are not closed in order."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


def variant(name: str, **changes) -> dict:
    measured = {"p50_ms": 0.127, "p90_ms": 0.131, "p99_ms": None, "drop": None, "reason": "", "why_lost": ""}
    found = {"max_abs_error": 3.2e-6, "agreement": 0.991, "num_images": 1747}
    base = {"name": name, "runtime": "onnxruntime", "precision": "fp32", "model_bytes": 131072, "parity": found}
    return {**base, **measured, **changes}


def picture(value: int, size: int = 32) -> np.ndarray:
    return np.full((size, size, 3), value, np.uint8)


def report(**changes) -> Report:
    classes = ["cat", EVIL]
    base = {
        "name": "pets",
        "target": "raspi4",
        "classes": classes,
        "chosen": "onnx-int8",
        "scores": [
            {"method": "support-only", **score(80, 100)},
            {"method": "onnx-int8", "note": EVIL, **score(90, 100)},
        ],
        "variants": [
            variant("onnx-fp32", why_lost="2.17 times the latency of onnx-int8"),
            variant("onnx-int8", precision="int8", drop={"drop": 0.01, "low": -0.005, "high": 0.02}),
            variant(
                "openvino-int8", model_bytes=0, parity=None, reason=EVIL, p50_ms=None, p90_ms=None,
                why_lost=f"failed its gate: {EVIL}",
            ),
        ],
        "tried": [
            {"variant": "onnx-int8", "rung": "per-channel", "reason": "loses 3 %", "kept": False,
             "parity": {"agreement": 0.987, "relative_error": 0.0123, "num_images": 500},
             "drop": {"drop": 0.03, "low": 0.01, "high": 0.05}},
            {"variant": "onnx-int8", "rung": "per-tensor", "parity": None, "drop": None, "reason": "KeyError: no",
             "kept": False},
            {"variant": "onnx-int8", "rung": "trained", "reason": "", "kept": True, "drop": None,
             "parity": {"agreement": 1.0, "relative_error": 0.01, "num_images": 500}},
        ],
        "alphas": [0.0, 0.2, 1.0],
        "pictures": [
            ClassPictures(name, [picture(0)], [picture(1)], [[picture(2)], [picture(3)], [picture(4)]])
            for name in classes
        ],
        "confusion": np.array([[48, 2], [8, 42]]),
        "warnings": ["Photographs are outside the domain."],
        "known": ["No int8 dot product.", "Photographs are outside the domain."],
        "provenance": {"Backbone": {"name": "glyphs", "fingerprint": "f" * 64, "agreement": {"0.2": 0.98765, "1": 1}}},
        "licences": [{"name": "glyphs", "licence": "Apache-2.0"}],
        "recipe_lock": 'name = "pets"\n',
    }  # fmt: skip
    return Report(**{**base, **changes})


@pytest.fixture(scope="module")
def page() -> Reader:
    return Reader(render_report(report()))


def test_it_is_pure():
    assert render_report(report()) == render_report(report())


def test_it_is_one_file_without_scripts_or_links(page: Reader):
    assert page.all("script") == page.all("link") == page.all("iframe") == []
    assert all(attrs["src"].startswith("data:image/png;base64,") for attrs in page.all("img"))
    assert not re.search(r"https?://|@import|url\(", render_report(report()))


def test_text_from_users_is_escaped(page: Reader):
    html = render_report(report())
    assert "<script>" not in html
    assert page.text.count("<script>alert('x')</script> & \"quotes\"") >= 5
    assert {"title": EVIL} in page.all("th")


def test_scores_come_with_n_and_interval(page: Reader):
    assert "support-only 100 80 80.0 71.1 – 86.7" in page.text
    assert "onnx-int8 shipped" in page.text
    assert "2.17 times the latency of onnx-int8" in page.text


def test_variants_show_size_parity_latency_gate_and_why_they_lost(page: Reader):
    assert re.search(
        r"onnx-int8 onnxruntime, int8 128 3\.2e-06 99\.1 n = 1747 1\.0 -0\.5 – 2\.0 0\.127 0\.131 –", page.text
    )
    assert re.search(r"openvino-int8 onnxruntime, fp32 – – – – – – – failed failed its gate", page.text)


def test_the_certificate_is_shown_where_there_is_one(page: Reader):
    assert "Certificate" not in page.text
    shown = Reader(render_report(report(certificate=f"top-1 >= 80.0 % {EVIL}"))).text
    assert f"Certificate top-1 >= 80.0 % {EVIL} Of onnx-int8" in shown


def test_everything_tried_is_shown(page: Reader):
    assert "per-channel 98.7 n = 500 3.0 1.0 – 5.0 0.0123 loses 3 %" in page.text
    assert "per-tensor – – – KeyError: no" in page.text
    assert "trained 100.0 n = 500 – 0.01 kept" in page.text


def test_pictures_of_every_class_over_alpha(page: Reader):
    assert len(page.all("img")) == 2 * 5
    assert "Supports Reconstructions α = 0 α = 0.2 α = 1" in page.text


def test_a_warning_is_said_once_and_provenance_is_plain(page: Reader):
    assert page.text.count("Photographs are outside the domain.") == 1
    assert "No int8 dot product." in page.text
    assert "0.2: 0.9877, 1: 1" in page.text
    assert "glyphs Apache-2.0" in page.text


def test_a_large_task_stays_small():
    many = [ClassPictures(str(index), [picture(index)] * 50) for index in range(60)]
    classes = [str(index) for index in range(60)]
    html = render_report(report(classes=classes, pictures=many, alphas=[], confusion=np.eye(60, dtype=int) * 3 + 1))
    page = Reader(html)
    assert len(page.all("img")) == MAX_GRID_CLASSES * MAX_CELL
    assert f"{60 - MAX_GRID_CLASSES} more classes are not shown" in page.text
    assert "True Predicted images of" in page.text
    assert len(html) < 300_000


def test_without_test_images_it_says_so():
    page = Reader(render_report(report(scores=[], confusion=None, pictures=[], tried=[], recipe_lock="")))
    assert "No accuracy was measured" in page.text
    assert "Confusions" not in page.text


def test_data_uri_is_the_picture_made_small():
    large = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    for rgb, size in ((picture(7, 20), (20, 20)), (large, (48, THUMBNAIL))):
        image = Image.open(io.BytesIO(base64.b64decode(data_uri(rgb).partition(",")[2])))
        assert (image.format, image.size) == ("PNG", size)
    assert np.asarray(Image.open(io.BytesIO(base64.b64decode(data_uri(picture(7)).partition(",")[2])))).max() == 7


def test_most_confused_first():
    confusion = np.array([[5, 1, 0], [3, 5, 0], [0, 1, 9]])
    found = [(one["true"], one["predicted"], one["count"], one["total"]) for one in most_confused(confusion, "abc")]
    assert found == [("b", "a", 3, 8), ("a", "b", 1, 6), ("c", "b", 1, 10)]
    assert most_confused(np.eye(3, dtype=int), "abc") == []


def test_the_axis_holds_every_interval():
    assert axis([{"low": 0.712, "high": 0.867}, {"low": 0.82, "high": 0.94}]) == (0.7, 1.0)
    assert axis([{"low": 0.0, "high": 1.0}]) == (0.0, 1.0)
    assert axis([]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("value", "text"), [({"a": [1, 2.0]}, "a: 1, 2"), ("x", "x"), (0.123456, "0.1235"), (None, "None"), (True, "True")]
)
def test_plain(value, text: str):
    assert plain(value) == text
