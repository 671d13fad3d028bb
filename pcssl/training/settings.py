"""The config of a pre-training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pcssl.config import Component, Range
from pcssl.data.settings import DataConfig
from pcssl.image.settings import ImageData

Positive = Annotated[float, Range(0, low_open=True)]
Fraction = Annotated[float, Range(0, 1, high_open=True)]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, linear warm-up, cosine to 0. The defaults are the paper's (clip and the parameters
    without decay are ours: norms, gammas, biases and tokens have none).
    """

    lr: Positive = 0.0015
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    weight_decay: Annotated[float, Range(0)] = 0.05
    epochs: Annotated[int, Range(1)] = 1800
    warmup_epochs: Annotated[float, Range(0)] = 60.0
    clip: Positive = 3.0


@dataclass(frozen=True)
class RunConfig:
    """kind: what `data` holds, scenes or images. output: folder of the run. init: checkpoint whose backbone the run starts from.
    device: "auto" takes the GPU when there is one.
    precision: "auto" is bf16 on a GPU that has it and fp32 elsewhere.
    engine: "auto", "native", "reference" or "spconv", see docs/engines.md.
    log_every, checkpoint_every: steps. monitor_every: epochs between small probes during training, when
        there are labels. imports: modules of your own to import first.
    """

    output: str
    data: DataConfig
    model: Annotated[Any, Component("model")]
    objective: Annotated[Any, Component("objective")]
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    seed: Annotated[int, Range(0)] = 0
    init: str | None = None
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    engine: str = "auto"
    log_every: Annotated[int, Range(1)] = 20
    checkpoint_every: Annotated[int, Range(1)] = 500
    monitor_every: Annotated[float, Range(0, low_open=True)] = 10.0
    imports: tuple[str, ...] = ()
    kind: Literal["scenes"] = "scenes"


@dataclass(frozen=True)
class ImageRunConfig(RunConfig):
    """The same for images."""

    data: ImageData
    kind: Literal["images"] = "images"
