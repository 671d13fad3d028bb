"""GLARE: self-supervised training goes on in a new domain, in the adapters of a frozen network, on three scales.

Ebouky, Chhatkuli, Malossi, Studer, Assaf, Bartezzaghi, "Enhancing Semantic Segmentation with Continual Self-Supervised
Pre-training", 2025, arXiv 2509.17816 (GLARE: Global Local and Regional Enforcement). No code is public. The paper's,
by its abstract and overview figure: a frozen ViT with UniAdapter, an EMA teacher of the adapters, two views;
consistency of whole images across views, of patches under a patch-level augmentation (blurring is the one named), and
of regions, sampled by attention, whose correspondence in the other view is found by cross-attention.

Ours, where the paper's details could not be read: all three losses are DINO's (a head and a centre each, weights 1);
the student sees both views with 30 % of the patches blurred; a region is a square window around a patch drawn with the
probability of the teacher's last attention, among those that hold 60 % of it; without a class token that is the mean
over all queries; the temperatures and the sizes of the heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcssl.config import Range
from pcssl.image.adapters import AdaptedViT
from pcssl.image.backbones.vit import patchify, unpatchify
from pcssl.image.settings import ImageData
from pcssl.image.tokens import ImageTokens
from pcssl.image.views import MOCO_VIEWS, ViewConfig, gaussian_blur
from pcssl.models.heads import Prototypes, head
from pcssl.objectives.distillation import DistillationLoss
from pcssl.objectives.image import ImageBatch, ImageObjective
from pcssl.objectives.masked_image import patch_mask
from pcssl.objectives.targets import Centre, soft_cross_entropy
from pcssl.objectives.teacher import Teacher
from pcssl.registry import register
from pcssl.schedules import cosine

Count = Annotated[int, Range(1)]
Part = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0, low_open=True)]


class PatchBlur(nn.Module):
    """Blur `ratio` of an image's patches, each within itself, by a Gaussian of a sigma drawn from a range, px."""

    def __init__(self, ratio: float = 0.3, sigma: tuple[float, float] = (0.1, 2.0)):
        super().__init__()
        self.ratio, self.sigma = ratio, sigma

    def forward(self, images: Tensor, patch: int) -> tuple[Tensor, Tensor]:
        """images: (B, C, H, W). Returns them changed, and (B, N) bool, which patches are."""
        hidden = patch_mask(images, patch, self.ratio)
        patches = patchify(images, patch).clone()
        if hidden.any():
            chosen = patches[hidden].unflatten(1, (images.shape[1], patch, patch))
            sigma = torch.empty(len(chosen), device=images.device).uniform_(*self.sigma)
            patches[hidden] = gaussian_blur(chosen, sigma).flatten(1)
        return unpatchify(patches, patch, (images.shape[2] // patch, images.shape[3] // patch)), hidden


@torch.no_grad()
def attention_guided_regions(
    attention: Tensor, grid: tuple[int, int], count: int, window: int = 3, mass: float = 0.6
) -> Tensor:
    """(B, count, window * window) int64: the patches of square windows around patches that are attended to.

    attention: (B, heads, N), its mean over heads is the probability of a patch to be the middle; only the patches
    that are attended to most and hold `mass` of it together are drawn. A window at the border is moved inside.
    """
    rows, columns = grid
    if window > min(rows, columns):
        raise ValueError(f"window: {window} x {window} patches do not fit a grid of {rows} x {columns}")
    share = attention.float().mean(1)
    share = share / share.sum(1, keepdim=True)
    value, order = share.sort(dim=1, descending=True)
    value = value * (value.cumsum(1) - value < mass)
    middle = order.gather(1, torch.multinomial(value, count, replacement=True))
    top = (middle // columns - window // 2).clamp(0, rows - window)
    left = (middle % columns - window // 2).clamp(0, columns - window)
    inside = torch.arange(window, device=attention.device)
    inside = (inside[:, None] * columns + inside).flatten()
    return (top * columns + left)[:, :, None] + inside


def region_means(tokens: Tensor, regions: Tensor) -> Tensor:
    """(B, N, D) and (B, R, n) patches -> (B, R, D)."""
    image = torch.arange(len(tokens), device=tokens.device)[:, None, None]
    return tokens[image, regions].mean(2)


def cross_view_region(region: Tensor, tokens: Tensor, temperature: float = 0.1) -> tuple[Tensor, Tensor]:
    """What a region (B, R, D) of one view is in the tokens (B, N, D) of another: (B, R, D), and the weights (B, R, N).

    The weights are a softmax of cosines over the temperature.
    """
    cosines = F.normalize(region.float(), dim=2) @ F.normalize(tokens.float(), dim=2).transpose(1, 2)
    weights = (cosines / temperature).softmax(2)
    return weights @ tokens.float(), weights


class GLARELoss(nn.Module):
    """Three cross-entropies of a teacher's centred probabilities and a student's. weights: global, local, regional."""

    def __init__(
        self, classes: int, weights: tuple[float, float, float] = (1.0, 1.0, 1.0), student_temperature: float = 0.1,
        centre_momentum: float = 0.9,
    ):  # fmt: skip
        super().__init__()
        self.weights = weights
        self.image = DistillationLoss(classes, student_temperature, centre_momentum)
        self.centres = nn.ModuleDict({part: Centre(classes, centre_momentum) for part in ("local", "regional")})

    def forward(
        self, images: tuple[list[Tensor], list[Tensor]], patches: tuple[Tensor, Tensor], regions: tuple[Tensor, Tensor],
        temperature: float,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Scores of the student and of the teacher: images (B, K) of two views, patches and regions (M, K), row i of
        both belonging together. Moves the centres when training. Returns loss and its three parts.
        """
        parts = {"global": self.image(*images, temperature)}
        for name, (student, teacher) in (("local", patches), ("regional", regions)):
            target = self.centres[name](teacher, temperature)
            parts[name] = soft_cross_entropy(target, student / self.image.student_temperature)
            if self.training:
                self.centres[name].update(teacher)
        loss = sum(weight * part for weight, part in zip(self.weights, parts.values()))
        return {"loss": loss, **{f"loss/{name}": part.detach() for name, part in parts.items()}}


class TokenNetwork(nn.Module):
    """A backbone and three heads: `heads["global"]` on images, "local" on patches, "regional" on regions."""

    def __init__(self, backbone: nn.Module, heads: dict[str, nn.Module]):
        super().__init__()
        self.backbone, self.heads = backbone, nn.ModuleDict(heads)

    def forward(self, images: Tensor) -> ImageTokens:
        return self.backbone(images)[-1]


@dataclass(frozen=True)
class GLAREConfig:
    """views: two of one size. head, hidden, bottleneck, prototypes: of each of the three heads, as in DINO.
    weights: of the global, local and regional loss. blur_ratio, blur_sigma: see `PatchBlur`.
    regions, window, attention_mass: see `attention_guided_regions`. region_temperature: see `cross_view_region`.
    momentum: of the teacher at the first and the last step, cosine between. heads_first: part of the steps in which
        the adapters wait for the heads, which start at random.
    """

    views: tuple[ViewConfig, ...] = MOCO_VIEWS
    head: Literal["dino", "dino_bn"] = "dino"
    hidden: Count = 2048
    bottleneck: Count = 256
    prototypes: Count = 8192
    weights: tuple[Annotated[float, Range(0)], Annotated[float, Range(0)], Annotated[float, Range(0)]] = (1.0, 1.0, 1.0)
    blur_ratio: Annotated[float, Range(0, 1, low_open=True)] = 0.3
    blur_sigma: tuple[Positive, Positive] = (0.1, 2.0)
    regions: Count = 8
    window: Count = 3
    attention_mass: Annotated[float, Range(0, 1, low_open=True)] = 0.6
    region_temperature: Positive = 0.1
    student_temperature: Positive = 0.1
    teacher_temperature: Positive = 0.04
    momentum: tuple[Part, Part] = (0.996, 1.0)
    centre_momentum: Part = 0.9
    heads_first: Part = 0.05
    evaluate: Literal["student", "teacher"] = "teacher"

    def __post_init__(self) -> None:
        if self.blur_sigma[0] > self.blur_sigma[1]:
            raise ValueError(f"blur_sigma: {self.blur_sigma[0]} is above {self.blur_sigma[1]}")


@register("objective", "glare", config=GLAREConfig)
class GLARE(ImageObjective):
    """Needs the `adapted_vit` model, which a run fills from an earlier one with `init: CHECKPOINT`."""

    def __init__(self, config: GLAREConfig, backbone: nn.Module, data: ImageData, total_steps: int):
        super().__init__(config, backbone, data, total_steps)
        if not isinstance(backbone, AdaptedViT):
            raise ValueError(f"glare needs the model adapted_vit; {type(backbone).__name__} has no adapters")
        sizes = [view.size for view in config.views for _ in range(view.count)]
        if len(sizes) != 2 or sizes[0] != sizes[1]:
            raise ValueError("views: glare needs two of one size")
        self.patch = backbone.config.patch
        if config.window > sizes[0] // self.patch:
            raise ValueError(f"window: {config.window} does not fit the {sizes[0] // self.patch} patches a side of a view")
        self.student = TokenNetwork(backbone, {part: self._head(backbone) for part in ("global", "local", "regional")})
        self.teacher = Teacher(self.student, batch_statistics=True, share_frozen=True)
        self.blur = PatchBlur(config.blur_ratio, config.blur_sigma)
        self.loss = GLARELoss(config.prototypes, config.weights, config.student_temperature, config.centre_momentum)
        self.adapters = [name for name, p in self.student.backbone.named_parameters() if p.requires_grad]

    def _head(self, backbone: nn.Module) -> nn.Module:
        config = self.config
        mlp = head(config.head, backbone.channels[-1], config.hidden, config.bottleneck)
        return nn.Sequential(mlp, Prototypes(config.bottleneck, config.prototypes))

    def backbone(self) -> nn.Module:
        return (self.student if self.config.evaluate == "student" else self.teacher.network).backbone

    def forward(self, batch: ImageBatch, step: int) -> dict[str, Tensor]:
        for name in self.adapters:
            self.student.backbone.get_parameter(name).requires_grad_(step >= self.config.heads_first * self.total_steps)
        images = torch.cat(batch.views)
        blurred, hidden = self.blur(images, self.patch)
        clean, seen = self.teacher(images), self.student(blurred)
        student, teacher = self.student.heads, self.teacher.network.heads
        with torch.no_grad():
            image_targets = teacher["global"](clean.pooled)
            patch_targets = teacher["local"](clean.dense[hidden])
            regions, found = self.matched_regions(images, clean)
            region_targets = teacher["regional"](found.flatten(0, 1))
        own = region_means(seen.dense, regions).flatten(0, 1)
        values = self.loss(
            (student["global"](seen.pooled).chunk(2), image_targets.chunk(2)),
            (student["local"](seen.dense[hidden]), patch_targets),
            (student["regional"](own), region_targets),
            self.config.teacher_temperature,
        )
        return {**values, **self.health("teacher", clean.pooled)}

    @torch.no_grad()
    def matched_regions(self, images: Tensor, clean: ImageTokens) -> tuple[Tensor, Tensor]:
        """Windows (2 B, R, n) of both views, and (2 B, R, D), what they are in the other view, for the teacher."""
        config, attention = self.config, self.teacher.network.backbone.attention_maps(images)
        with_class = clean.cls is not None
        attention = attention[:, :, 0, 1:] if with_class else attention.mean(2)
        regions = attention_guided_regions(attention, clean.grid, config.regions, config.window, config.attention_mass)
        other = clean.dense.roll(len(images) // 2, 0)
        return regions, cross_view_region(region_means(clean.dense, regions), other, config.region_temperature)[0]

    def after_step(self, step: int) -> dict[str, float]:
        momentum = cosine(step, self.total_steps, *self.config.momentum)
        self.teacher.update(self.student, momentum)
        return {"momentum": momentum}
