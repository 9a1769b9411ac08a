"""A target is a device: what can run there, and what is known of it. Strict TOML in."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

ModelKind = Literal["onnx-fp32", "onnx-fp16", "onnx-int8", "openvino-fp16", "openvino-int8"]


class Target(BaseModel):
    """One file of ``targets/``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    title: str
    architecture: Literal["x86_64", "aarch64", "any"]
    models: list[ModelKind] = Field(min_length=1, description="What may legally run there, most preferred first.")
    opset: Annotated[int, Field(ge=13, le=25)] = 18
    threads: Annotated[int, Field(ge=1)] = Field(description="Inference threads of the shipped configuration.")
    providers: dict[Literal["onnxruntime", "openvino"], list[str]] = Field(
        default_factory=dict,
        description="A runtime's providers or devices, most wanted first; the first that is there runs the model. "
        "Default: the processor.",
    )
    memory_mib: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Of the smallest such board; one with clearly less is warned about."
    )
    known: list[str] = Field(default_factory=list, description="What is known of the device, for the reader.")
    sources: list[str] = Field(default_factory=list)

    @property
    def exact_int8(self) -> bool:
        """Whether int8 sums are exact there, so that they must be here: saturating ones are x86-64's."""
        return self.architecture == "aarch64"


def schema() -> dict[str, Any]:
    """The JSON schema of a target file."""
    return Target.model_json_schema()
