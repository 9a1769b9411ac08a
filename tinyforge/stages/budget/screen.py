"""What a net costs, before anything is learned: an untrained one has the size and the latency of a trained one.

::

    screen-<key>/ models/ screen.json     the untrained net in every model kind; made once, measured in every race
"""

from typing import Any

from tinyforge.device.spec import InputSpec
from tinyforge.recipe import Compress
from tinyforge.stages.budget.entrants import Entered, Net
from tinyforge.stages.compress import evenly, kinds, legal
from tinyforge.stages.road import Artifact, Road
from tinyforge.store import Partial, Store, stage_key

VERSION = 1
IMAGES = 16


def untrained(road: Road, net: Net) -> Entered:
    """The models of a net with random weights, quantised on a few supports; ``road``: its own."""
    from tinyforge.compress.variants import Variant

    settings = {
        "net": str(net),
        "kinds": kinds(road.recipe, road.job.target),
        "opset": road.job.target.opset,
        "reduce_range": road.recipe.compress.reduce_range,
        "embed_preprocessing": road.recipe.compress.embed_preprocessing,
        "seed": road.recipe.seed,
        "name": road.recipe.name,
        "supports": road.support_hash,
    }
    key = stage_key("screen", VERSION, settings)
    store, job = Store(road.job.out / "store"), road.job
    path, _ = store.build(
        "screen", key, {"settings": settings}, lambda partial: work(road, net, partial),
        overwrite=job.overwrite, resume=job.resume,
    )  # fmt: skip
    artifact = Artifact(key, path)
    record = artifact.json("screen.json")
    made = tuple(Variant.from_json(one) for one in record["variants"])
    return Entered(net, road, artifact, made, InputSpec.from_json(record["input"]))


def work(road: Road, net: Net, partial: Partial) -> None:
    from tinyforge.compress.calibration import Calibration, Prepared
    from tinyforge.compress.embed import pixel_spec
    from tinyforge.compress.ladder import Validation
    from tinyforge.compress.parity import torch_logits
    from tinyforge.compress.variants import make_variants
    from tinyforge.distill.students import default_spec
    from tinyforge.distill.train import seeded_student

    support, wanted = road.inputs.support, legal(road.recipe, road.job.target)
    spec = default_spec(net.student, net.input_size)
    settings = road.recipe.distill.model_copy(update={"pretrained": False})
    student = seeded_student(settings, len(support.classes), net.input_size, road.recipe.seed).eval()
    chosen = sorted(evenly(len(support), IMAGES))
    prepared = Prepared([support.rgb[i] for i in chosen], spec)
    inputs = prepared.array()
    made = make_variants(
        student, spec, support.classes, partial.path / "models", name=road.recipe.name, opset=road.job.target.opset,
        calibration=Calibration(prepared, prepared), settings=without_gate(wanted), seed=road.recipe.seed,
        validation=Validation(inputs, support.labels[chosen], torch_logits(student, inputs)),
    )  # fmt: skip
    record: dict[str, Any] = {"variants": [one.to_json() for one in made]}
    record["input"] = (pixel_spec(spec) if wanted.embed_preprocessing else spec).to_json()
    partial.write_json("screen.json", record)


def without_gate(wanted: Compress) -> Compress:
    """What an untrained net answers is of no interest: the first rung of every ladder will do."""
    return wanted.model_copy(update={"max_drop": 1.0, "min_agreement": 0.0, "qat_steps": 0, "max_abs_error": 1e9})
