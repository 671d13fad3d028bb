"""A model to use: a backbone that knows its voxel size and inputs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from pcssl.config import ComponentConfig
from pcssl.data.formats import RawScan, complete, to_color
from pcssl.data.formats.scan import GREY
from pcssl.data.inputs import INPUTS
from pcssl.data.normals import estimate_normals
from pcssl.data.scene import Scene
from pcssl.errors import UserError
from pcssl.evaluation.extraction import Progress, TiledFeatures
from pcssl.evaluation.features import PointFeatures
from pcssl.evaluation.memory import parse_bytes
from pcssl.models.checkpoints import ImageWeights, load_state, read_weights
from pcssl.tokens import Tokens
from pcssl.training.trainer import pick_device

Array: TypeAlias = "Tensor | np.ndarray"
Levels: TypeAlias = "Literal['all'] | Sequence[int]"


@dataclass(frozen=True)
class PretrainedModel:
    """backbone: in eval mode. model: its config. voxel_size: metres. card: what is known of its training.

    mode: how its levels are read, see `pcssl.ops.interpolate`. inputs: a name in `pcssl.data.inputs.INPUTS`.
    """

    backbone: nn.Module
    model: ComponentConfig
    voxel_size: float
    card: dict[str, Any]
    mode: str = "exact"
    inputs: str = "color_normal"

    def extract(
        self,
        scene: Scene | Array,
        levels: Levels = "all",
        *,
        color: Array | None = None,
        normal: Array | None = None,
        max_memory: str | float | None = None,
    ) -> Tokens:
        """A feature for every point, in their order: Tokens with features (N, D) float32 on the CPU.

        scene: a `Scene`, or the points alone as (N, 3) metres, z up.
        levels: which of the backbone's levels, finest = 0; all by default. They are put side by side, D channels.
        color: (N, 3) of the points, bytes, or floats in 0..1. normal: (N, 3). Without them the points are a
            uniform grey and normals are estimated, with a warning.
        max_memory: "4GB" or bytes, of the whole process on the CPU, of torch's tensors on a GPU; a scene that
            needs more is cut into tiles. By default most of what is free.

        Raises ValueError for points that are not finite, arrays that do not fit one another, and unknown
        levels; UserError for a scene that cannot be cut small enough.

        >>> from pcssl.config import component
        >>> config = component("model", "hunet", channels=[8, 16], decoder_channels=[8, 16], blocks=[1, 1],
        ...     decoder_blocks=[1, 1], attention=[0, 0], decoder_attention=[0, 0], heads=[1, 1], decoder_heads=[1, 1])
        >>> model = PretrainedModel(config.build().eval(), config, voxel_size=0.1, card={})
        >>> points, normals = torch.rand(500, 3), torch.tensor([0.0, 0, 1]).expand(500, 3)
        >>> model.extract(points, color=torch.rand(500, 3), normal=normals).features.shape
        torch.Size([500, 24])
        >>> model.extract(points.numpy(), [0], color=np.zeros((500, 3), np.uint8), normal=normals).features.shape
        torch.Size([500, 8])
        """
        scene = _as_scene(scene, color, normal)
        found = torch.zeros(len(scene), self.width(levels))
        for rows, features in self.parts(scene, levels, max_memory=max_memory, kept=found.nbytes):
            found[rows] += features
        return Tokens(found, scene.coord, torch.zeros(len(scene), dtype=torch.int64))

    def parts(
        self,
        scene: Scene,
        levels: Levels = "all",
        *,
        max_memory: str | float | None = None,
        kept: int = 0,
        progress: Progress | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """What `extract` puts together, part by part, for features that are larger than memory.

        Gives rows (n,) int64 and what to add to them, (n, D) float32 on the CPU; a point comes once, or where tiles
        overlap once for each. kept: bytes of memory that the caller fills with them. progress: is told the part
        done, 0..1.
        """
        scene = _complete(scene)
        for what in scene.filled:
            grey = "a uniform grey" if len(scene.color.unique()) == 1 else "its intensity as grey"
            made = {"color": grey, "normal": "estimated"}[what]
            name = scene.name or "the scene"
            warnings.warn(f"{name} has no {what}; it is {made}, the model was trained with it", stacklevel=2)
        limit = None if max_memory is None else parse_bytes(max_memory)
        yield from TiledFeatures(self.point_features(levels), limit).parts(scene, kept, progress)

    def point_features(self, levels: Levels = "all") -> PointFeatures:
        """The backbone and how these levels of it are read. ValueError for levels that it does not have."""
        return PointFeatures(self.backbone, self.voxel_size, self._chosen(levels), self.mode, self.inputs)

    def width(self, levels: Levels = "all") -> int:
        """Channels of these levels together."""
        return sum(self.backbone.channels[i] for i in self._chosen(levels))

    def _chosen(self, levels: Levels) -> tuple[int, ...]:
        known = range(len(self.backbone.channels))
        chosen = tuple(known) if isinstance(levels, str) and levels == "all" else tuple(levels)
        if not chosen or len(set(chosen)) < len(chosen) or not all(level in known for level in chosen):
            raise ValueError(f"levels {list(chosen)}: the model has levels 0 to {known[-1]}; name each once, or \"all\"")
        return chosen

    def with_random_weights(self, seed: int) -> PretrainedModel:
        """The same architecture, freshly initialised."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = self.model.build()
        device = next(self.backbone.parameters()).device
        return replace(self, backbone=fresh.to(device).eval(), card={"weights": "random"})


def _as_scene(points: Scene | Array, color: Array | None, normal: Array | None) -> Scene:
    if isinstance(points, Scene):
        if color is not None or normal is not None:
            raise ValueError("color and normal belong to points without a scene; set those of the scene")
        return points
    coord, color, normal = (None if x is None else np.asarray(x.cpu() if isinstance(x, Tensor) else x) for x in (points, color, normal))
    if not np.isfinite(coord).all():
        raise ValueError("some points are not finite; leave them out")
    try:
        color = None if color is None else to_color(color, "color")
        return complete(RawScan(coord.astype(np.float64), color, normal), "the points", name="")
    except UserError as error:
        raise ValueError(str(error)) from error


def _complete(scene: Scene) -> Scene:
    """The scene with colour and normals, grey and estimated where it has none."""
    if scene.color is None:
        grey = torch.full((len(scene), 3), GREY, dtype=torch.uint8)
        scene = replace(scene, color=grey, filled=(*scene.filled, "color"))
    if scene.normal is None:
        scene = replace(scene, normal=estimate_normals(scene.coord), filled=(*scene.filled, "normal"))
    return scene


def load_model(name: str | Path, device: torch.device | str = "auto") -> PretrainedModel:
    """A model to extract features with.

    name: model.safetensors or a checkpoint of `pcssl train`, the folder of a run, weights that others have
        released (`pcssl.models.checkpoints`); or on the Hugging Face Hub owner/name or hf://owner/name/file.
    device: "auto" takes the GPU when there is one.

    Raises UserError for a model that is missing, damaged, of another kind, or whose tensors do
    not fit (all are named). Nothing in the file is executed.
    """
    weights = read_weights(name)
    if isinstance(weights, ImageWeights):
        raise UserError(f"{name} was trained on images, not on scenes; pcssl.evaluation.load_image_model reads it")
    if weights.inputs not in INPUTS:
        raise UserError(f"{name} wants the inputs {weights.inputs!r}, this pcssl knows {', '.join(INPUTS)}; update pcssl")
    backbone = weights.model.build()
    load_state(backbone, weights.state, str(name))
    backbone = backbone.to(pick_device(str(device))).eval()
    return PretrainedModel(backbone, weights.model, weights.voxel_size, weights.card, weights.mode, weights.inputs)
