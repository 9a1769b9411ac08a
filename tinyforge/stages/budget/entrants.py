"""Who takes part: the candidate nets, and what they may be."""

from dataclasses import dataclass
from typing import Any

from tinyforge.device.spec import InputSpec
from tinyforge.recipe import Distill, Recipe
from tinyforge.stages.inputs import Inputs, input_size
from tinyforge.stages.road import Artifact, Road
from tinyforge.stages.starts import start_for


@dataclass(frozen=True)
class Net:
    """A student at an input size: what is trained once, and then exported and quantised in several ways."""

    student: str
    input_size: int

    def __str__(self) -> str:
        return f"{self.student} {self.input_size} px"


@dataclass(frozen=True)
class Entered:
    """A net and the artifact that holds its models. road: its own build. made: its variants, also those that failed.
    spec: of the models' input.
    """

    net: Net
    road: Road
    models: Artifact
    made: tuple[Any, ...]
    spec: InputSpec

    @classmethod
    def of(cls, net: Net, road: Road) -> "Entered":
        """A net whose build has been compressed."""
        from tinyforge.compress.variants import Variant

        artifact = road.done["compress"]
        about = artifact.json("compress.json")
        made = tuple(Variant.from_json(one) for one in about["variants"])
        return cls(net, road, artifact, made, InputSpec.from_json(about["input"]))

    def legal(self) -> list[Any]:
        """The variants that were made and that the target may run."""
        return [one for one in self.made if one.files and one.name in self.road.job.target.models]


def nets_of(recipe: Recipe, inputs: Inputs) -> list[Net]:
    """Every student at every size. Raises RecipeError, MissingError for one that cannot be built, before any work."""
    from tinyforge.distill.students import build_student

    wanted, nets = recipe.budget, []
    for student in dict.fromkeys(wanted.students):
        own = own_distill(recipe.distill, student)
        sizes = wanted.input_sizes or [input_size(own, inputs.support)]
        nets += [Net(student, size) for size in dict.fromkeys(sizes)]
    for net in nets:
        build_student(net.student, len(inputs.support.classes), input_size=net.input_size)
    return nets


def own_distill(wanted: Distill, student: str) -> Distill:
    """The recipe's settings for another student than its own."""
    pretrained = wanted.pretrained and student.startswith("timm:")
    return wanted.model_copy(update={"student": student, "pretrained": pretrained, "start": start_for(student, wanted)})


def road_of(road: Road, net: Net) -> Road:
    """The build of one net, with the images and models of ``road``, in the same store."""
    recipe = road.recipe
    distill = own_distill(recipe.distill, net.student).model_copy(update={"input_size": net.input_size})
    own = road.variant(recipe.model_copy(update={"distill": distill}), road.inputs, road.job.out)
    own.warnings.extend(road.warnings)
    own.done.update({name: one for name, one in road.done.items() if name in ("invert", "synthesize")})
    return own


def threads_of(road: Road) -> list[int]:
    return list(dict.fromkeys(road.recipe.budget.threads or [road.job.target.threads]))
