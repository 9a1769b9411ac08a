"""The methods that an evaluation compares, and how they are named: ``<name>[@<value>][+base][+pretrained]``.

``@`` is alpha for synthetic images and the learning rate for ``teacher-tuned``; without it, the recipe decides.
``+base``: the student also learns from images of the base classes, labelled by the teacher. ``+pretrained``: it starts
from weights trained on the base classes.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tinyforge.errors import UsageError
from tinyforge.registry import unknown

REFERENCE = "support-hard"
NTI_ALPHA = 0.2
MOST_RATE = 1000.0  # as in a recipe


@dataclass(frozen=True)
class Row:
    """images: what the student sees beside the supports: None, 'ti', 'nti', 'tint' or 'real'. labels: 'class', or
    'teacher' for the teacher's soft labels beside the class.
    """

    images: str | None
    labels: str
    about: str


STUDENTS = {
    "support-hard": Row(None, "class", "student on the supports alone, class labels"),
    "support-kd": Row(None, "teacher", "student on the supports alone, the teacher's labels too"),
    "ti": Row("ti", "teacher", "textual inversion only: the learned prompt, no null-text; the teacher's labels too"),
    "ti-class": Row("ti", "class", "textual inversion only, class labels"),
    "nti": Row("nti", "teacher", "null-text inversion only: a generic prompt, small alpha; the teacher's labels too"),
    "nti-class": Row("nti", "class", "null-text inversion only, class labels"),
    "tint-class": Row("tint", "class", "textual and null-text inversion, class labels"),
    "tint-teacher": Row("tint", "teacher", "textual and null-text inversion, the teacher's labels too"),
    "real-extra": Row("real", "teacher", "real extra images instead of synthetic ones; the teacher's labels too"),
    "real-extra-class": Row("real", "class", "real extra images instead of synthetic ones, class labels"),
}
TEACHERS = {
    "teacher": "the teacher's prototypes, no fine-tuning",
    "teacher-tuned": "the teacher fine-tuned on the supports, at the recipe's rate",
}
BUILDS = {"build": "what a build ships: images, labels and teacher chosen by its trial on the supports"}
DEFAULT = ("support-hard", "support-kd", "ti", "nti", "tint-class", "tint-teacher", "teacher", "teacher-tuned")
DIFFUSION = ("ti", "nti", "tint")
PATTERN = re.compile(r"(?P<name>[a-z-]+)(@(?P<value>[0-9.e-]+))?(?P<base>\+base)?(?P<pretrained>\+pretrained)?")


@dataclass(frozen=True)
class Method:
    """One parsed name. value: alpha or learning rate; None: the recipe's."""

    kind: str
    value: float | None = None
    base: bool = False
    pretrained: bool = False

    @property
    def name(self) -> str:
        value = "" if self.value is None else f"@{self.value:g}"
        return f"{self.kind}{value}{'+base' * self.base}{'+pretrained' * self.pretrained}"

    @property
    def is_teacher(self) -> bool:
        return self.kind in TEACHERS

    @property
    def is_build(self) -> bool:
        return self.kind in BUILDS

    @property
    def is_student(self) -> bool:
        """One of the table's, trained here on what the others are trained on."""
        return self.kind in STUDENTS

    @property
    def row(self) -> Row:
        return STUDENTS[self.kind]

    @property
    def images(self) -> str | None:
        """The set of images it learns from, such as 'tint@0.4'; methods with the same name share them."""
        if not self.is_student or self.row.images is None:
            return None
        return self.row.images if self.value is None else f"{self.row.images}@{self.value:g}"

    @property
    def needs_backbone(self) -> bool:
        return self.is_build or (self.is_student and self.row.images in DIFFUSION)

    @property
    def needs_teacher(self) -> bool:
        return not self.is_student or self.row.labels == "teacher" or self.row.images is not None


def parse(text: str) -> Method:
    """A method by its name. Raises UsageError saying what is wrong with it."""
    found = PATTERN.fullmatch(text.strip())
    known = {**STUDENTS, **TEACHERS, **BUILDS}
    if found is None or found["name"] not in known:
        raise UsageError(unknown("method", text if found is None else found["name"], known))
    kind, base, pretrained = found["name"], bool(found["base"]), bool(found["pretrained"])
    value = _number(found["value"], text)
    if kind not in STUDENTS and (base or pretrained):
        raise UsageError(f"'{text}': +base and +pretrained are for the students of the table")
    if base and STUDENTS[kind].labels == "class":
        raise UsageError(
            f"'{text}': base images have only the teacher's labels; use a method with these, such as tint-teacher"
        )
    takes = kind == "teacher-tuned" or (kind in STUDENTS and STUDENTS[kind].images in ("nti", "tint"))
    if value is not None and not takes:
        raise UsageError(f"'{text}': {kind} takes no @value; tint-class, tint-teacher, nti and teacher-tuned do")
    if value is not None and kind in STUDENTS and not 0 <= value <= 1:
        raise UsageError(f"'{text}': alpha must be from 0 to 1")
    if value is not None and kind not in STUDENTS and not 0 <= value <= MOST_RATE:
        raise UsageError(f"'{text}': the learning rate must be from 0 to {MOST_RATE:g}")
    if kind.startswith("nti") and value is None:
        value = NTI_ALPHA
    return Method(kind, value, base, pretrained)


def expand(names: Iterable[str], alphas: Sequence[float]) -> tuple[Method, ...]:
    """Methods in order, once each; every tint method without an alpha of its own once per alpha, where any is given."""
    found: list[Method] = []
    for method in map(parse, names):
        sweep = method.is_student and method.row.images == "tint" and method.value is None and alphas
        values = [parse(f"{method.kind}@{alpha:g}").value for alpha in alphas] if sweep else [method.value]
        found += [Method(method.kind, value, method.base, method.pretrained) for value in values]
    return tuple(dict.fromkeys(found))


def _number(text: str | None, where: str) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        raise UsageError(f"'{where}': '{text}' is no number") from None
