"""Are features alive? What a checkpoint's levels look like without any labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional as F

from pcssl.data.scene import Scene
from pcssl.errors import UserError
from pcssl.evaluation.features import PointFeatures
from pcssl.statistics import effective_rank, feature_std, linear_r2

VOXELS = 2000  # of a scene and level
LEAST = 200  # points of all scenes


@torch.no_grad()
def level_health(source: PointFeatures, scenes: Sequence[Scene], without: Sequence[str] = ()) -> list[dict[str, float]]:
    """Per level, finest first, over random voxels of all scenes.

    std: spread of directions, 0 collapsed, about 1 isotropic. rank: effective rank, of `channels`.
    scenes: share of the variance between scenes' means, near 1 when a level only tells scenes apart.
    height, normal, color: how well a linear map of the features tells them (R2, 0..1).
    geometric: how well height and normal, with squares and products, tell the features (R2): near 1, they
    hold nothing else.
    without: "color", "normal": what the network does not get; it is asked for all the same.
    UserError for scenes of too few points to tell: of one point every network looks collapsed.
    """
    points = sum(min(len(scene), VOXELS) for scene in scenes)
    if points < LEAST:
        raise UserError(f"these {len(scenes)} scenes have {points} points together, too few to judge features by; give at least {LEAST}")
    features: list[list[torch.Tensor]] = []
    inputs: list[list[torch.Tensor]] = []
    for number, scene in enumerate(scenes):
        found = source.encode(_without(scene, without))
        rng = torch.Generator().manual_seed(number)
        rows = torch.randperm(len(scene), generator=rng)[:VOXELS]
        for i in range(len(found.levels)):
            if len(features) <= i:
                features.append([])
                inputs.append([])
            features[i].append(found.read(scene.coord[rows], [i]).cpu())
            height = scene.coord[rows, 2:] - scene.coord[:, 2].amin()
            inputs[i].append(torch.cat([height, scene.normal[rows], scene.color[rows].float() / 255], 1))
    return [_level(x, y) for x, y in zip(features, inputs)]


def _without(scene: Scene, what: Sequence[str]) -> Scene:
    """Grey for colours, zeros for normals, as the augmentations that drop them leave."""
    if "color" in what:
        scene = replace(scene, color=torch.full_like(scene.color, 128))
    return replace(scene, normal=torch.zeros_like(scene.normal)) if "normal" in what else scene


def _level(parts: list[torch.Tensor], known: list[torch.Tensor]) -> dict[str, float]:
    x, y = torch.cat(parts), torch.cat(known)
    mixed = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[mixed], y[mixed]
    geometry = y[:, :4]
    products = torch.cat([geometry[:, i : i + 1] * geometry[:, i:] for i in range(4)], 1)
    between = torch.stack([p.mean(0) for p in parts]).var(0, correction=0).sum() if len(parts) > 1 else torch.zeros(())
    standard = (x - x.mean(0)) / x.std(0).clamp(min=1e-8)
    return {
        "channels": x.shape[1],
        "std": float(feature_std(x)),
        "rank": float(effective_rank(x)),
        "variation": float(x.std(0).mean() / x.abs().mean().clamp(min=1e-12)),
        "scenes": float(between / x.var(0, correction=0).sum().clamp(min=1e-12)),
        "height": float(linear_r2(x, y[:, :1])),
        "normal": float(linear_r2(x, y[:, 1:4])),
        "color": float(linear_r2(x, y[:, 4:])),
        "geometric": float(linear_r2(F.pad(torch.cat([geometry, products], 1), (0, 1), value=1.0), standard)),
    }


def verdict(levels: list[dict[str, float]]) -> list[str]:
    """What is wrong, a line each; one line of relief when nothing is."""
    lines = []
    for i, level in enumerate(levels):
        if not math.isfinite(level["std"]):
            lines.append(f"level {i} is not finite: the model has diverged")
        elif level["variation"] < 1e-3:
            lines.append(f"level {i} is constant: its features do not change from place to place")
        elif level["std"] < 0.1 or level["rank"] < 2:
            lines.append(
                f"level {i} has collapsed: all features point the same way (spread {level['std']:.2f}, effective rank "
                f"{level['rank']:.1f} of {level['channels']:.0f})"
            )
        elif level["geometric"] > 0.8:
            lines.append(
                f"level {i} is merely geometric: height and normal alone tell {100 * level['geometric']:.0f} % of its features"
            )
        elif level["scenes"] > 0.8:
            lines.append(f"level {i} only tells scenes apart: {100 * level['scenes']:.0f} % of its variance lies between scenes")
    return lines or ["no level is collapsed, constant or merely geometric"]


def as_table(levels: list[dict[str, Any]]) -> str:
    names = ("std", "rank", "scenes", "height", "normal", "color", "geometric")
    lines = [f"{'level':>5}{'channels':>10}" + "".join(f"{name:>11}" for name in names)]
    for i, level in enumerate(levels):
        lines.append(f"{i:>5}{level['channels']:>10.0f}" + "".join(f"{level[name]:>11.2f}" for name in names))
    return "\n".join(lines)
