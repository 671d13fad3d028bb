"""How good an image backbone's features are: nearest neighbours and ridge regression, beside two floors.

On request also which layer of the head above it is the best, and how it bears corrupted images and serves each class.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from pcssl.analysis.robustness import CORRUPTIONS, rates, retrieval_precision
from pcssl.config import ComponentConfig, Range, component, from_dict
from pcssl.errors import UserError
from pcssl.evaluation.layers import head_layers, probe_layers
from pcssl.evaluation.neighbors import NearestNeighborProbe
from pcssl.evaluation.ridge import RidgeProbe
from pcssl.image.datasets import ImageSource
from pcssl.image.picture import Picture, resized
from pcssl.image.settings import ImageData
from pcssl.image.tokens import pooled
from pcssl.models.checkpoints import ImageWeights, load_state, read_weights
from pcssl.objectives.image import Embedder
from pcssl.training.checkpoint import load_checkpoint

Count = Annotated[int, Range(1)]
BATCH = 256
Digest = Any  # of hashlib
Features = Callable[[Tensor], Tensor]  # of images (B, C, H, W) in 0..1


@dataclass(frozen=True)
class ImageProbeConfig:
    """heads: ridge regression and nearest neighbours on all labels; few: both with few labels a class.
    train_split, val_split: images to fit and to score on, each resized as a whole to `size` px square; None = the
        largest view of the training. neighbors: of the k-NN votes. few: labels a class.
    floors: also random weights and pixels. seeds: of the random weights and of the draws of few labels.
    layers: also every layer of the training's projection head, see `probe_layers`.
    robustness: also corrupted images and every class alone, by votes of the last of `neighbors`.
    """

    heads: tuple[Literal["ridge", "nn", "few"], ...] = ("ridge", "nn")
    train_split: str = "train"
    val_split: str = "val"
    size: Count | None = None
    neighbors: tuple[Count, ...] = (1, 10)
    few: tuple[Count, ...] = (5,)
    floors: bool = True
    seeds: Count = 3
    layers: bool = False
    robustness: bool = False


@dataclass(frozen=True)
class ImageModel:
    """backbone: in eval mode. model: its config. channels, size: of the images it takes. card: of its training.
    head: what training put on its embeddings (B, D), in eval mode, if it was asked for.
    """

    backbone: nn.Module
    model: ComponentConfig
    channels: int
    size: int
    card: dict[str, Any]
    head: nn.Module | None = None

    @torch.no_grad()
    def embed(self, values: Tensor) -> Tensor:
        """(B, channels, H, W) in 0..1 -> (B, D) on the CPU: what stands for each image."""
        return embed(self.backbone, values)

    def with_random_weights(self, seed: int) -> ImageModel:
        """The same architecture, freshly initialised, without the head."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = self.model.build()
        return replace(self, backbone=fresh.to(next(self.backbone.parameters()).device).eval(), head=None)


def load_image_model(path: str | Path, device: torch.device | str = "cpu", with_head: bool = False) -> ImageModel:
    """A model of images: the folder of a run, its model.safetensors or its checkpoint.pt, or a name, see `find_file`.

    with_head: also the head, which checkpoint.pt alone has. UserError if the method has none on whole images, and for
    a model that is missing, damaged or of scenes.
    """
    weights = read_weights(path)
    if not isinstance(weights, ImageWeights):
        raise UserError(f"{path} was not trained on images; pcssl.load_model reads it")
    backbone = weights.model.build()
    load_state(backbone, weights.state, str(path))
    head = _projection_head(path, weights.model.build()).to(device).eval() if with_head else None
    return ImageModel(backbone.to(device).eval(), weights.model, weights.channels, weights.size, weights.card, head)


def _projection_head(path: str | Path, backbone: nn.Module) -> nn.Module:
    """The head beside the backbone that a run offers for evaluation."""
    path = Path(path) / "checkpoint.pt" if Path(path).is_dir() else Path(path)
    if path.suffix == ".safetensors":
        raise UserError(f"{path} holds the backbone alone; for probe.layers name the checkpoint.pt of its run")
    content = load_checkpoint(path)
    options = dict(content["config"]["objective"])
    name, data = options.pop("name"), from_dict(content["config"]["data"], ImageData, str(path))
    objective = component("objective", name, **options).build(backbone, data, content["total_steps"])
    load_state(objective, content["objective"], str(path))
    owner = objective.get_submodule(content["backbone_prefix"].rpartition(".backbone.")[0])
    if not isinstance(owner, Embedder):
        raise UserError(f"{path}: {name} has no head on whole images whose layers could be scored; leave out probe.layers")
    return owner.head


@torch.no_grad()
def embed(backbone: nn.Module, values: Tensor) -> Tensor:
    """(B, C, H, W) in 0..1 -> (B, D) float32 on the CPU, in eval mode."""
    was_training = backbone.training
    backbone.eval()
    out = pooled(backbone(2 * values.to(next(backbone.parameters()).device) - 1)).float().cpu()
    backbone.train(was_training)
    return out


def probe_images(model: ImageModel, data: ImageSource, config: ImageProbeConfig) -> dict[str, Any]:
    """Every head on a model, on random weights and on pixels.

    Returns plain values: {"protocol", "data", "results": {source: {head: {"accuracy": {"mean", "std", "runs"}}}}}, and
    if asked for "layers" (see `probe_layers`) and "robustness": {source: {what: see `GroupRates.summary`}}.
    UserError when the dataset has no labels. ValueError when layers are asked of a model without a head.
    """
    if config.layers and model.head is None:
        raise ValueError("layers: load the model with_head=True")
    if not data.classes:
        raise UserError(f"{data.name} has no labels to score; a probe needs a folder a class")
    size, classes = config.size or model.size, len(data.classes)
    train, val = (data.images(split) for split in (config.train_split, config.val_split))

    digests = hashlib.sha256(), hashlib.sha256()

    def features_of_both(features: Features, said: tuple[Digest | None, ...] = (None, None)) -> tuple[Tensor, ...]:
        both = [features_of(features, split, size, model.channels, said=s) for split, s in zip((train, val), said)]
        return *both[0], *both[1]

    def corrupted(features: Features, change: Features) -> Tensor:
        return features_of(lambda x: features(change(x)), val, size, model.channels)[0]

    def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
        return {head: {"accuracy": _spread([run[head] for run in runs])} for head in runs[0]}

    seeds = range(config.seeds)
    sources = {"trained": model.embed} | ({"pixels": lambda x: x.flatten(1)} if config.floors else {})
    sets = {source: features_of_both(features, *([digests] if source == "trained" else [])) for source, features in sources.items()}
    results = {
        source: summary([accuracies(*found, classes, config, seed) for seed in (seeds if "few" in config.heads else [0])])
        for source, found in sets.items()
    }
    if config.floors:
        fresh = [accuracies(*features_of_both(model.with_random_weights(seed).embed), classes, config, seed) for seed in seeds]
        results = {"trained": results["trained"], "random weights": summary(fresh), "pixels": results["pixels"]}
    described = {
        "root": data.name, "label": "class", "classes": list(data.classes), "train_images": len(train), "val_images": len(val),
        "fingerprint": "".join(digest.hexdigest()[:16] for digest in digests),
    }  # fmt: skip
    found = {"protocol": asdict(config) | {"size": size}, "data": described, "results": results}
    if config.layers:
        x, y, query, expected = sets["trained"]
        found["layers"] = probe_layers(head_layers(model.head, x), y, head_layers(model.head, query), expected, classes)
    if config.robustness:
        found["robustness"] = {
            source: robustness(*sets[source], partial(corrupted, features), data.classes, config.neighbors[-1])
            for source, features in sources.items()
        }
    return found


def robustness(
    x: Tensor, y: Tensor, query: Tensor, expected: Tensor, corrupted: Callable[[Features], Tensor], classes: Sequence[str], k: int
) -> dict[str, dict[str, Any]]:
    """Share of right votes of k neighbours on clean and corrupted images, and of neighbours that are right, by class.

    x, query: (M, D) and (N, D) features. y, expected: (M,) and (N,) labels. corrupted: a change of images -> the (N, D)
    features of the changed ones.
    """
    probe, groups = NearestNeighborProbe.fit(x, y, len(classes)), [classes[i] for i in expected.tolist()]
    versions = {"clean": query} | {name: corrupted(change) for name, change in CORRUPTIONS.items()}
    found = {name: rates(probe(features, (k,))[0] == expected, groups) for name, features in versions.items()}
    k = min(k, len(x))
    found[f"precision at {k}"] = retrieval_precision(query, x, expected, y, groups, (k,))[k]
    return {name: rate.summary() for name, rate in found.items()}


def accuracies(
    x: Tensor, y: Tensor, query: Tensor, known: Tensor, classes: int, config: ImageProbeConfig, seed: int
) -> dict[str, float]:
    """Share of right predictions, a head each."""
    rows = {}
    if {"ridge", "nn"} & set(config.heads):
        rows[""] = torch.arange(len(y))
    if "few" in config.heads:
        rows |= {f"/{count} a class": few_rows(y, count, seed) for count in config.few}
    found = {}
    for suffix, at in rows.items():
        if suffix or "ridge" in config.heads:
            found[f"ridge{suffix}"] = RidgeProbe.fit(x[at], y[at], classes)(query)
        if suffix or "nn" in config.heads:
            nearest = NearestNeighborProbe.fit(x[at], y[at], classes)(query, config.neighbors)
            found |= {f"{k}-nn{suffix}": p for k, p in zip(config.neighbors, nearest)}
    return {head: float((p == known).float().mean()) for head, p in found.items()}


def few_rows(labels: Tensor, count: int, seed: int) -> Tensor:
    """Rows of `count` random labels of every class (all, where there are fewer)."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return torch.cat([order[labels[order] == c][:count] for c in labels.unique()])


def features_of(
    features: Features, pictures: Sequence[Picture], size: int, channels: int, most: int | None = None, said: Digest | None = None
) -> tuple[Tensor, Tensor]:
    """(N, D) and labels (N,) of all labelled pictures, or `most` of them evenly spread; UserError if there are none.

    said: is told of every picture that counts.
    """
    rows = range(len(pictures)) if most is None or most >= len(pictures) else range(0, len(pictures), -(-len(pictures) // most))
    parts = [(features(values), labels) for values, labels in _batches(pictures, rows, size, channels, said)]
    if not parts:
        raise UserError("none of the images could be read with a label; a probe needs some")
    return tuple(torch.cat(x) for x in zip(*parts))


def _batches(
    pictures: Sequence[Picture], rows: range, size: int, channels: int, said: Digest | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """(values (B, C, size, size), labels (B,)); what cannot be read is left out with a line that says why."""
    values, labels = [], []
    for i in rows:
        try:
            picture = pictures[i]
            if picture.label >= 0:
                values.append(resized(picture.values(channels), size))
                labels.append(picture.label)
                if said is not None:  # the same on every machine, wherever the files lie
                    said.update(f"{picture.label} {tuple(picture.pixels.shape)} {float(picture.pixels.double().sum()):.6g} ".encode())
        except (UserError, ValueError, OSError) as error:
            _say(f"probe: left out image {i} ({pictures.names[i]}): {error}")
        if len(values) == BATCH or (values and i == rows[-1]):
            yield torch.stack(values), torch.tensor(labels)
            values, labels = [], []


@cache  # once an image: every source and corruption reads it again
def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _spread(runs: list[float]) -> dict[str, Any]:
    values = torch.tensor(runs, dtype=torch.float64)
    return {"mean": float(values.mean()), "std": float(values.std(correction=0)), "runs": runs}


class SmallImageProbe:
    """Call it with a backbone and a step for {"probe/ridge": accuracy, ...}, on at most `most` images a split."""

    def __init__(self, data: ImageSource, config: ImageProbeConfig, size: int, channels: int, most: int = 1000):
        self.splits = [data.images(split) for split in (config.train_split, config.val_split)]
        self.config, self.classes, self.most = config, len(data.classes), most
        self.size, self.channels = config.size or size, channels

    def __call__(self, backbone: nn.Module, step: int) -> dict[str, float]:
        sets = [features_of(lambda x: embed(backbone, x), s, self.size, self.channels, self.most) for s in self.splits]
        found = accuracies(*sets[0], *sets[1], self.classes, self.config, seed=0)
        return {f"probe/{head}": value for head, value in found.items()}
