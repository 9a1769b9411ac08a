"""A recipe says what to make. Strict TOML in, JSON schema out; every key is read by a stage and none is ignored.

Only the sections that a stage reads enter its cache key.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST = 1_000_000  # beyond it nothing ends, or fits anywhere
Unit = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(ge=1e-9, le=MOST)]
Count = Annotated[int, Field(ge=1, le=MOST)]
Gain = Annotated[float, Field(ge=-1000.0, le=1000.0)]
Batch = Annotated[int, Field(ge=2, le=65_536)]


class Section(BaseModel):
    """Base of all recipe sections: unknown keys are errors, numbers are finite, values never change after
    validation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Section):
    """Which images. ``--data`` and ``--test`` on the command line take precedence over ``path`` and ``test``."""

    path: str | None = Field(
        None, description="Folder of class folders, a CSV (path,label), or the sample task 'digits'."
    )
    test: str | None = Field(None, description="A second folder or CSV with test images of the same classes.")
    classes: list[str] | None = Field(None, description="Explicit class order; default: sorted names.")
    shots: Count | None = Field(
        None, description="Seeded supports per class; the rest becomes the test set. Null: see holdout."
    )
    holdout: float = Field(
        0.2,
        ge=0.0,
        le=0.9,
        description="Share held out per class for testing when there is no test folder and no shots.",
    )
    min_holdout: Count = Field(
        10, description="Hold out only when every class then has at least this many test images."
    )
    max_pixels: int = Field(
        100_000_000,
        ge=1,
        le=178_956_970,
        description="A larger image is refused as a decompression bomb; Pillow opens none beyond the highest value.",
    )


class Backbone(Section):
    """The latent diffusion model. 'auto' picks Stable Diffusion 1.5 on a GPU host that has it, else the embedded
    one.
    """

    name: str = Field("auto", description="'auto', 'glyphs', 'photos', 'sd15', a hub name, or a diffusers folder.")
    auto_folder: str | None = Field(
        None, description="The diffusers folder that 'auto' takes on a GPU host, before it looks in the hub's cache."
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_size: Count | None = Field(
        None,
        description="At most so many images in a forward pass at inversion and generation; null: 32 on a CPU, on a "
        "GPU what fits; halved where the memory does not hold them.",
    )


class Invert(Section):
    """TINT's inversions. The paper's values (Landolsi & Kahl 2024): 5000 TI steps of batch 1 at 1e-3, 25 DDIM steps,
    guidance 7.5.
    """

    prompt: str = Field("A photo of an {}", description="'{}' is where the learned token goes.")
    initializer: str = Field("object", description="The word a new token starts from.")
    initializers: dict[str, str] = Field(default_factory=dict, description="Class name -> its own initial word(s).")
    num_vectors: int = Field(1, ge=1, le=64, description="K learned vectors per class.")
    ti_steps: int = Field(5000, ge=0, le=MOST)
    ti_batch_size: Count = Field(1, description="Noisy samples per class and step.")
    ti_lr: Positive = 1e-3
    ti_schedule: Literal["constant", "cosine"] = Field("constant", description="Of ti_lr over the steps.")
    ti_patience: Count | None = Field(
        None,
        description="Stop a class once its loss on held-back noise has not fallen for so many steps, and keep its best "
        "vectors; null: never.",
    )
    ti_min_timestep: int = Field(250, ge=0, le=999, description="Timesteps are drawn uniformly from [min, max).")
    ti_max_timestep: int = Field(1000, ge=1, le=1000)
    num_steps: int = Field(
        25, ge=1, le=1000, description="DDIM steps, 'trailing' spacing; inversion and generation share them."
    )
    guidance_scale: float = Field(7.5, ge=0.0, le=1000.0)
    guidance_interval: list[Unit] = Field(
        [0.0, 1.0],
        min_length=2,
        max_length=2,
        description="Guide only between these shares of the noisiest timestep; 0 is clean, 1 is noise.",
    )
    nti_start: Literal["null", "condition"] = Field(
        "null", description="What null-text inversion starts from: the empty prompt, or the image's own condition."
    )
    nti_inner_steps: int = Field(10, ge=0, le=MOST)
    nti_lr: Positive = 1e-2
    nti_tolerance: float = Field(1e-5, ge=0.0, le=1.0, description="Stop the inner steps of an image at this MSE.")
    upscale: str | None = Field(
        None, description="A super-resolution checkpoint (HAT, loaded by spandrel) for small supports."
    )

    @model_validator(mode="after")
    def _check(self) -> "Invert":
        if self.prompt.count("{}") != 1:
            raise ValueError("prompt must contain '{}' exactly once, where the learned token goes")
        if self.ti_min_timestep >= self.ti_max_timestep:
            raise ValueError("ti_min_timestep must be below ti_max_timestep")
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError("guidance_interval must be [low, high] with low at most high")
        return self


class Synthesize(Section):
    """New images: z' = (1-alpha) z_T + alpha eps, norm-guided, denoised with the support's null embeddings."""

    images_per_class: int = Field(100, ge=0, le=MOST)
    alphas: list[Unit] = Field([1.0], min_length=1, description="Images are dealt evenly to these blends.")
    preview_alphas: list[Unit] = Field(
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0], min_length=1, description="Columns of the report's picture grid."
    )


class Teacher(Section):
    """P>M>F: prototypes of a strong feature extractor, fine-tuned on the support set at test time."""

    name: str = Field("auto", description="'auto', 'glyphs', 'photos', 'timm:<model>', or a folder / checkpoint file.")
    fine_tune_lrs: list[Annotated[float, Field(ge=0.0, le=1000.0)]] = Field([0.0, 1e-4, 1e-3, 1e-2], min_length=1)
    fine_tune_steps: int = Field(50, ge=0, le=MOST)
    folds: Annotated[int, Field(ge=2, le=MOST)] = Field(
        5, description="At most so many folds when a learning rate is chosen on the supports."
    )
    scale: Positive = Field(10.0, description="logits = scale * cosine(feature, prototype)")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "float32", description="Arithmetic of fine-tuning; auto: bfloat16 where the processor has it."
    )


class Distill(Section):
    """The student and how it learns."""

    student: str = Field("conv4", description="'conv4', 'resnet12' or 'timm:<model>'.")
    input_size: Annotated[int, Field(ge=8, le=1024)] | None = Field(
        None,
        description="Pixels; null: the median short side of the supports, within 32 to 64, in steps of 16, not less "
        "than the starting weights were trained at.",
    )
    pretrained: bool = Field(False, description="Start a timm student from its pretrained weights.")
    start: str = Field(
        "random",
        description="Starting weights: 'random'; 'photos', those that ship for photos (a student without any starts at "
        "random); or a folder that `pretrain photos --student` wrote.",
    )
    start_lr_share: Unit = Field(0.1, description="Share of lr for a student with starting weights.")
    labels: Literal["auto", "class", "teacher"] = Field(
        "auto",
        description="Targets of synthetic images; 'auto' puts them, the teacher and the images themselves on trial.",
    )
    hard_label_share: Unit = Field(0.5, description="Weight of the class label beside the teacher's soft label.")
    temperature: Positive = 4.0
    min_agreement: Unit | None = Field(
        None,
        description="Drop synthetic images whose class gets less teacher probability than this; null: 1 / classes.",
    )
    epochs: Count = 60
    steps_per_epoch: Count = Field(20, description="Fixed, so that every student of a build sees equally many batches.")
    batch_size: Batch = 64
    distinct_batches: int = Field(
        0,
        ge=0,
        le=MOST,
        description="After so many, or as many as show an image five times on average, the batches repeat, views and "
        "all, so that the teacher labels each once; 0: never.",
    )
    support_share: Unit = Field(
        0.5, description="Share of each batch drawn from the supports when there are synthetic images."
    )
    lr: Positive = 0.05
    momentum: Unit = 0.9
    weight_decay: float = Field(5e-4, ge=0.0, le=1000.0)
    ema_decay: Unit = Field(0.98, description="0 switches the weight average off.")
    augment: Literal["none", "light", "strong"] = "strong"
    flip: bool = Field(False, description="Mirror images left-right; wrong for writing.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Arithmetic of training the student; auto: bfloat16 where the processor has it. On a CPU, networks "
        "with depthwise convolutions take float32, in which they are faster.",
    )
    unlabelled: str | None = Field(
        None, description="A folder of further images without labels, labelled by the teacher."
    )
    unlabelled_share: Unit | None = Field(
        None,
        description="Share of each batch's other half drawn from images without labels; null: as many as they are.",
    )


class Trial(Section):
    """Short students, each without some of the supports, decide what the student learns from (distill.labels =
    'auto').
    """

    folds: Annotated[int, Field(ge=2, le=MOST)] = Field(
        3, description="At most so many; every support is held out once."
    )
    steps: Count = Field(100, description="Of each short student.")
    batch_size: Batch = 32
    input_size: Annotated[int, Field(ge=8, le=1024)] = Field(
        32, description="Short students see at most so many pixels, where the network takes any size."
    )
    support_shares: list[Unit] = Field(
        [0.75], description="Once synthetic images have won: further shares of supports in a batch to try."
    )
    single_alphas: bool = Field(True, description="Once synthetic images have won: try those of each alpha alone.")
    min_probability: Unit = Field(
        0.9, description="A departure from the default must be better with this probability to be taken."
    )
    expected_gains: dict[Literal["support-kd", "tint-class", "tint-teacher"], Gain] = Field(
        {"support-kd": 0.10, "tint-class": -0.05, "tint-teacher": 0.12},
        description="In the backbone's domain: gain of each way over the supports alone, in nats, before the trial.",
    )
    overstated_gains: dict[Literal["support-kd", "tint-class", "tint-teacher"], Gain] = Field(
        {},
        description="In the backbone's domain: how much more, in nats, short students gained than those in full "
        "length; the trial takes it off.",
    )
    expected_sd: float = Field(
        0.15,
        ge=1e-6,
        le=1000.0,
        description="How far, in nats, a task's gain may well be from the expected one.",
    )


class Compress(Section):
    """Which models are tried and what they must keep."""

    precisions: list[Literal["onnx-fp32", "onnx-fp16", "onnx-int8", "openvino-fp16", "openvino-int8"]] = Field(
        ["onnx-fp32", "onnx-int8", "openvino-fp16", "openvino-int8"], min_length=1
    )
    calibration_images: Count = Field(300, description="Supports, then synthetic images, that set the int8 ranges.")
    validation_images: Count = Field(
        500,
        description="Views of the supports and other synthetic images on which the gate is held; never test images.",
    )
    max_drop: Unit = Field(0.01, description="A smaller model may lose this much accuracy (paired) against fp32.")
    min_agreement: Unit = Field(0.95, description="Top-1 agreement with fp32 that a smaller model must keep.")
    qat_steps: int = Field(
        200,
        ge=0,
        le=MOST,
        description="Steps of quantisation-aware training, tried when no other int8 model passes; 0: never.",
    )
    reduce_range: bool = Field(
        False, description="7-bit weights: the same int8 answers on x86-64 processors with and without VNNI."
    )
    embed_preprocessing: bool = Field(
        False, description="Models take uint8 NHWC pixels at input size and normalise them inside the graph."
    )
    max_abs_error: Positive = Field(1e-3, description="Largest logit error allowed of an fp32 export against torch.")


class Bench(Section):
    """How latency is measured on this machine."""

    seconds: Positive = Field(1.0, description="At least this long per model ...")
    min_runs: Annotated[int, Field(ge=64, le=MOST)] = Field(
        662, description="... and at least this often: 64 for a p90, 662 for a p99."
    )
    warmup: Count = 20


class Speed(Section):
    """What makes a build faster and its results no other than to rounding; each can be switched off. docs/speed.md."""

    side_by_side: bool = Field(
        True,
        description="On a CPU: students and batches of images each on one core, not one after another on all. On a "
        "GPU: pictures are written while it works on.",
    )
    fit_memory: bool = Field(
        True,
        description="On a GPU: batch, gradient checkpointing, VAE slicing and offloading by its free memory; channels "
        "last.",
    )
    reuse_condition: bool = Field(
        True, description="Predict the conditional noise once per timestep of null-text inversion, not at every step."
    )
    engine: Literal["eager", "auto", "compiled", "openvino"] = Field(
        "eager",
        description="What runs the diffusion model where no gradient is asked for; auto: the fastest here, measured at "
        "the first build in a folder, which takes minutes.",
    )
    stack_guidance: bool = Field(
        True, description="Both predictions of a guided step in one forward pass, not one after the other."
    )
    inversion: Literal["fast", "plain"] = Field(
        "fast",
        description="plain: as the papers write it, one sample and one image at a time, each encoded anew, with the "
        "whole token table learning; the same results, to rounding, many times slower.",
    )
    training: Literal["fast", "plain"] = Field(
        "fast", description="plain: a student's images decoded anew for every batch, and their views made one by one."
    )


class Budget(Section):
    """Limits of ``tinyforge build``; any of the three switches the race of candidates on. No other stage reads this."""

    max_ms: Positive | None = Field(
        None, description="Latency on the target in ms: the p90's upper bound at 99 % confidence must keep it."
    )
    max_mib: Positive | None = Field(
        None, description="Size of the model's files in MiB (2**20 bytes), without the bundle around them."
    )
    min_accuracy: Unit | None = Field(
        None, description="Top-1 on the test images: its exact lower bound, for all candidates at 95 %, must keep it."
    )
    students: list[str] = Field(
        ["conv4", "timm:lcnet_050", "timm:mobilenetv4_conv_small_050"],
        min_length=1,
        description="Candidates, like distill.student; without test images those first named are preferred.",
    )
    input_sizes: list[Annotated[int, Field(ge=8, le=1024)]] = Field(
        [], description="Candidates in pixels; empty: that of [distill] alone."
    )
    threads: list[Count] = Field([], description="Candidates of inference threads; empty: the target's alone.")

    @property
    def limits(self) -> dict[str, float]:
        """Name -> value of the limits that are set."""
        found = {"max_ms": self.max_ms, "max_mib": self.max_mib, "min_accuracy": self.min_accuracy}
        return {name: value for name, value in found.items() if value is not None}


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        "invert": {
            "prompt": "A photo of an {}", "initializer": "object", "num_vectors": 1,
            "ti_steps": 5000, "ti_batch_size": 1, "ti_lr": 1e-3, "ti_min_timestep": 250, "ti_max_timestep": 1000,
            "ti_schedule": "constant", "ti_patience": None, "num_steps": 25, "guidance_scale": 7.5,
            "guidance_interval": [0.0, 1.0], "nti_start": "null", "nti_inner_steps": 10, "nti_lr": 1e-2,
            "nti_tolerance": 1e-5,
        },
        "synthesize": {"images_per_class": 100, "alphas": [1.0]},
    }
}  # fmt: skip
"""Settings by name; paper: what Landolsi & Kahl 2024 (arXiv 2406.03146) and their public code say."""


class Recipe(Section):
    """The whole. ``schema_version`` rises when a key changes its meaning."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    description: str = ""
    seed: int = Field(0, ge=0, lt=2**32)
    target: str
    preset: Literal["paper"] | None = Field(
        None,
        description="'paper': [invert] and [synthesize] as published, also where the backbone suggests faster ones; "
        "keys that are written still count.",
    )
    data: Data = Data()
    backbone: Backbone = Backbone()
    invert: Invert = Invert()
    synthesize: Synthesize = Synthesize()
    teacher: Teacher = Teacher()
    distill: Distill = Distill()
    trial: Trial = Trial()
    compress: Compress = Compress()
    bench: Bench = Bench()
    speed: Speed = Speed()
    budget: Budget = Budget()


def schema() -> dict[str, Any]:
    """The JSON schema of a recipe file."""
    return Recipe.model_json_schema()


def with_defaults(section: Section, defaults: dict[str, Any]) -> Section:
    """``section`` with every key that its author left out taken from ``defaults``; validated again."""
    written = section.model_dump(include=section.model_fields_set)
    return type(section).model_validate({**defaults, **written})
