"""The protocol: trained features beside random weights, input features and supervision, on one dataset."""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from pcssl.clusters import KMeans, match_clusters
from pcssl.config import Range
from pcssl.data.datasets import SceneSource
from pcssl.data.scene import Scene
from pcssl.errors import UserError
from pcssl.evaluation.cache import EVEN, BackboneFeatures, FeatureCache, InputFeatures, Sample, data_keys, file_key
from pcssl.evaluation.ceilings import train_with_labels
from pcssl.evaluation.features import turn_scene
from pcssl.evaluation.instances import AveragePrecision, InstanceProbe
from pcssl.evaluation.linear import LinearProbe
from pcssl.evaluation.lists import FewLists, points_title, scenes_title
from pcssl.evaluation.metrics import confusion_matrix, scores
from pcssl.evaluation.neighbors import NearestNeighborProbe
from pcssl.evaluation.pretrained import Levels, PretrainedModel
from pcssl.training import load_checkpoint

# 1: the class-aware sample was fitted on as if it were all points; neighbours among features as they are.
# 2: databases near the size of the sample had too many points of rare classes; AP25 counted a prediction for two instances.
PROTOCOL_VERSION = 3

HELD = 300_000_000  # numbers of all heads that are scored together: 1.2 GB
UNSCORED = 300  # seconds of fitting that a stopped run may lose
LINE_EVERY = 60  # seconds between lines of progress where they cannot overwrite each other

Count = Annotated[int, Range(1)]
Part = Annotated[float, Range(0, 1, low_open=True)]
Head = Literal["linear", "nn", "few", "clusters", "instances", "supervised", "finetune"]


@dataclass(frozen=True)
class ProbeConfig:
    """heads: linear and nn on all labels; few: both again on few labelled scenes and on few labelled points a
        scene; clusters: k-means matched to the classes; instances: grouping by linear heads, see
        `pcssl.evaluation.instances`; supervised and finetune: the same network trained with
        the labels for as many steps as the checkpoint's own run, from scratch and from the checkpoint.
    train_split, val_split: scenes to fit and to score on.
    train_points: class-aware sample a training scene, fixed for all seeds and heads; its rows count in the loss as much
        as the points they stand for. "all": every labelled point, which takes disk in proportion.
    only_levels: of the backbone, 0 the finest, whose features are used; None = all. [0]: its last layer only. Networks
        trained with labels use all.
    lovasz: linear heads add the Lovász-Softmax loss to the cross-entropy.
    val_points: random points a val scene that the nearest neighbour is scored on, 0 = all; every
        other head is always scored on all points.
    database: most points that the nearest neighbour searches, a class-blind part of the sample (`Sample.draw`).
    few_scenes, few_points: parts of the training scenes, and points a scene, that keep their labels; another part for
        each seed, of the points out of 200 that all seeds share.
    few_lists: folder with the data-efficient benchmark's own lists, scenes/P.txt and points/pointsK; those that are there
        take the place of the draws, "listed" in the scores' names.
    instance_radius: metres within which points of an instance touch.
    views: of test-time augmentation: with more than 1 the linear head, and networks trained with labels, are scored a
        second time, with probabilities averaged over so many turns of the scene about the vertical axis.
    levels: also each level alone and all without it, for the trained features (linear).
    floors: also random weights and input features.
    seeds: for the heads, their draws and the random weights; scores are mean and standard deviation over them.
    """

    heads: tuple[Head, ...] = ("linear", "nn")
    train_split: str = "train"
    val_split: str = "val"
    train_points: Count | Literal["all"] = 2000
    only_levels: tuple[Annotated[int, Range(0)], ...] | None = None
    lovasz: bool = False
    val_points: Annotated[int, Range(0)] = 0
    database: Count = 100_000
    neighbors: tuple[Count, ...] = (1, 20)
    few_scenes: tuple[Part, ...] = (0.01, 0.05, 0.1, 0.2)
    few_points: tuple[Annotated[int, Range(1, EVEN)], ...] = (20, 50, 100, 200)
    few_lists: str | None = None
    instance_radius: Annotated[float, Range(0, low_open=True)] = 0.04
    views: Count = 1
    levels: bool = False
    floors: bool = True
    epochs: Count = 30
    seeds: Count = 3

    def __post_init__(self) -> None:
        if not self.heads and not self.levels:
            raise ValueError("heads: name one at least")
        if not self.neighbors:
            raise ValueError("neighbors: name one number at least")
        if self.levels and self.only_levels is not None:
            raise ValueError("levels: the study is of all levels; leave only_levels out")


Report = Callable[[str], None]


def probe(
    model: PretrainedModel,
    data: SceneSource,
    config: ProbeConfig,
    *,
    cache: Path | None = None,
    checkpoint: str | Path | None = None,
    report: Report | None = None,
    predictions: dict[int, Tensor | None] | None = None,
) -> dict[str, Any]:
    """Every head on a model, on random weights and on input features.

    cache: folder that keeps features, and runs with labels, for the next call; None: they go when this one ends.
    checkpoint: the file of the model, which the heads that train with labels need.
    predictions: its keys are numbers of scored scenes; each gets the classes (N,) that the first seed's linear head gives all
        their points.
    Returns plain values: {"protocol": ..., "data": ..., "results": {source: {head: {"miou":
    {"mean", "std", "runs"}, ..., "iou": [per class], "confusion": counts of the first seed}}}}.
    Raises UserError when the dataset has no labels, or the val split none.
    """
    if data.label is None:
        raise UserError(f"{data.root} names no label to score; set label and classes of the dataset")
    if {"supervised", "finetune"} & set(config.heads):
        if checkpoint is None:
            raise UserError("supervised and finetune need the checkpoint whose network and budget they take")
        load_checkpoint(checkpoint)  # now, not after all the other heads
    try:
        chosen: Levels = "all" if config.only_levels is None else model.point_features(config.only_levels).levels
    except ValueError as error:
        raise UserError(f"probe.only_levels: {error}") from None
    say = report or (lambda line: print(line, file=sys.stderr, flush=True))
    train, val = _labelled(data, config.train_split), _labelled(data, config.val_split)
    device = next(model.backbone.parameters()).device
    with tempfile.TemporaryDirectory() as scratch:
        run = _Run(cache or Path(scratch), train, val, data, config, device, say, predictions or {})
        results = {"trained": run.score("trained", [_source(model, chosen)], levels=config.levels)}
        run.predictions = {}
        if config.floors:
            drawn = [_source(model.with_random_weights(seed), chosen) for seed in range(config.seeds)]
            results["random weights"] = run.score("random weights", drawn)
            results["input features"] = run.score("input features", [InputFeatures()])
        for kind in ("supervised", "finetune"):
            if kind in config.heads:
                results[kind] = run.with_labels(kind, checkpoint)
    described = {
        "root": str(data.root), "label": data.label, "classes": list(data.classes),
        "train_scenes": len(train), "val_scenes": len(val), "fingerprint": run.fingerprint,
    }  # fmt: skip
    found = {"protocol": {"version": PROTOCOL_VERSION, **asdict(config)}, "data": described, "results": results}
    return {**found, "instances": run.instances} if run.instances else found


def _source(model: PretrainedModel, levels: Levels = "all") -> BackboneFeatures:
    return BackboneFeatures(model.point_features(levels))


def _labelled(data: SceneSource, split: str) -> Sequence[Scene]:
    scenes = data.scenes(split)
    if data.label not in scenes[0].labels:
        raise UserError(f"{data.root}: scene {scenes[0].name} of split {split!r} has no {data.label}; a probe needs labels")
    return scenes


@dataclass(frozen=True)
class FittedHead:
    """names: of what `predict` returns for (n, D) features, a list of (n,) predictions. seed: it was fitted with.
    columns: features it takes, None = all. sampled: scored on `val_points` only.
    probability: (n, D) features -> (n, classes), of a head that is scored over several views as well; that one is its last name.
    """

    names: tuple[str, ...]
    seed: int
    predict: Callable[[Tensor], list[Tensor]]
    columns: Tensor | None = None
    sampled: bool = False
    probability: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class PlannedHead:
    """What `fit` will return, before the work. size: numbers that it will hold at most."""

    names: tuple[str, ...]
    seed: int
    fit: Callable[[], FittedHead]
    size: int = 0


class _Run:
    """What all sources of one call share."""

    def __init__(
        self, folder: Path, train, val, data: SceneSource, config: ProbeConfig, device, say: Report, predictions: dict[int, Tensor | None],
    ):  # fmt: skip
        self.folder, self.train, self.val, self.data, self.config, self.device, self.say, self.predictions = (
            folder, train, val, data, config, device, say, predictions,
        )  # fmt: skip
        self.classes = len(data.classes)
        self.count = None if config.train_points == "all" else config.train_points
        asked = config.few_lists is not None and "few" in config.heads
        self.lists = FewLists.read(Path(config.few_lists), config.few_scenes, config.few_points) if asked else None
        self.instances: dict[str, dict[str, Any]] = {}
        if "instances" in config.heads:
            without = next((scene.name for scenes in (train, val) for scene in scenes if scene.instance is None), None)
            if without is not None:
                raise UserError(f"{data.root}: scene {without} has no instances; leave `instances` out of the heads")
        said, (self.train_key, self.val_key) = zip(*(data_keys(scenes, data.label, self.classes) for scenes in (train, val)))
        self.fingerprint = "".join(key[:16] for key in said)

    def score(self, name: str, sources: list, levels: bool = False) -> dict[str, Any]:
        """All heads and seeds on a source; several sources take the seeds in turn. What the cache has of them is taken from there."""
        begin = time.monotonic()
        found: dict[str, dict[int, Tensor]] = {}
        precision: dict[int, dict[str, Any]] = {}
        for i, source in enumerate(sources):
            cache = FeatureCache(self.folder, source, self.train_key, self.val_key, self.count, self.lists)
            sample = cache.sample(self.train, self.data.label, _progress(f"{name}: features of training scenes"))
            seeds = range(i, self.config.seeds, len(sources))
            missing: list[PlannedHead] = []
            for planned in chain.from_iterable(self._planned(sample, seed, source.channels if levels else ()) for seed in seeds):
                kept = {title: cache.score(self._key(title, planned.seed)) for title in planned.names}
                for title, matrix in kept.items():
                    found.setdefault(title, {}).update({} if matrix is None else {planned.seed: torch.tensor(matrix)})
                if None in kept.values() or (planned.names[0] == "linear" and planned.seed == 0 and self._unpictured()):
                    missing.append(planned)
            for heads in _together(missing, _progress(f"{name}: fitting heads")):
                for head, title, matrix in self._confusions(cache, heads, name):
                    cache.keep_score(self._key(title, head.seed), matrix.tolist())
                    found[title][head.seed] = matrix
                del heads, head  # before the next group is fitted
            for seed in seeds if "instances" in self.config.heads else ():
                key = self._key("instances", seed)
                precision[seed] = cache.score(key) or self._precision(cache, sample, seed, name)
                cache.keep_score(key, precision[seed])
        if precision:
            self.instances[name] = _instance_summary([precision[seed] for seed in sorted(precision)])
        summary = {head: _summary([matrices[seed] for seed in sorted(matrices)]) for head, matrices in found.items()}
        line = ", ".join(f"{head} {100 * s['miou']['mean']:.1f}" for head, s in summary.items() if "/" not in head)
        if line:
            self.say(f"probe: {name}: mIoU {line} ({time.monotonic() - begin:.0f} s)")
        return summary

    def _planned(self, sample: Sample, seed: int, channels: Sequence[int]) -> Iterator[PlannedHead]:
        return plan_heads(sample, self.classes, self.config, seed, self.device, channels)

    def _key(self, title: str, seed: int) -> str:
        """Of a score, among those of the same features: whatever it depends on."""
        config = self.config
        settings = (config.val_points, config.database, config.epochs, config.instance_radius, *(["lovasz"] if config.lovasz else []))
        classes = tuple(self.data.classes) if title == "instances" else self.classes  # some names have no instances
        return repr((PROTOCOL_VERSION, classes, title, seed, settings))

    def _unpictured(self) -> bool:
        return any(kept is None and number < len(self.val) for number, kept in self.predictions.items())

    def _precision(self, cache: FeatureCache, sample: Sample, seed: int, name: str) -> dict[str, Any]:
        """Average precision of one seed's heads over all val scenes."""
        heads = InstanceProbe.fit(
            sample.features, sample.labels, sample.offset, list(self.data.classes), rows=sample.rows(), weights=sample.weight,
            radius=self.config.instance_radius, epochs=self.config.epochs, lovasz=self.config.lovasz, seed=seed, device=self.device,
        )  # fmt: skip
        precision = AveragePrecision(list(self.data.classes))
        progress = _progress(f"{name}: grouping")
        for number in range(len(self.val)):
            scene = self.val[number]
            parts = [heads.points(values) for _, values in cache.chunks(scene, number)]
            probability, offset = (torch.cat(x) for x in zip(*parts))
            found = heads.group(scene.coord.to(probability.device), probability, offset)
            precision.add(found, scene.labels[self.data.label], scene.instance)
            progress(number + 1, len(self.val))
        return precision.scores()

    def with_labels(self, kind: str, checkpoint: str | Path) -> dict[str, Any]:
        """The head of a network that was trained with the labels, a run a seed."""
        begin, found = time.monotonic(), {}
        for seed in range(self.config.seeds):
            where = self.folder / f"{kind}-{file_key(checkpoint)}-{self.train_key}-{self.classes}-{seed}"
            trained = train_with_labels(checkpoint, kind, self.train, self.data.label, self.classes, where, seed, self.device)
            cache = FeatureCache(self.folder, _source(trained.model), self.train_key, self.val_key, self.count)
            several = trained.probability if self.config.views > 1 else None
            head = FittedHead(titles(kind, self.config), seed, lambda x, trained=trained: [trained.predict(x)], probability=several)
            for _, title, matrix in self._confusions(cache, [head], kind):
                found.setdefault(title, []).append(matrix)
        summary = {title: _summary(matrices) for title, matrices in found.items()}
        self.say(f"probe: {kind}: mIoU {100 * summary[kind]['miou']['mean']:.1f} ({time.monotonic() - begin:.0f} s)")
        return summary

    def _confusions(self, cache: FeatureCache, heads: list[FittedHead], name: str) -> Iterator[tuple[FittedHead, str, Tensor]]:
        """Per head and prediction its confusion matrix over all val scenes, which are read once."""
        pictured = next((head for head in heads if head.names[0] == "linear"), None)
        several = [i for i, head in enumerate(heads) if head.probability]
        counts = [[torch.zeros(self.classes, self.classes, dtype=torch.int64) for _ in head.names] for head in heads]
        progress = _progress(f"{name}: scoring")
        for number in range(len(self.val)):
            scene = self.val[number]
            label = scene.labels[self.data.label]
            asked = asked_points(label, self.config.val_points, number)
            drawn = torch.zeros_like(label) if pictured and self.predictions.get(number, label) is None else None
            for part, values in cache.chunks(scene, number):
                values = values.to(self.device)
                rows = torch.nonzero(asked[part])[:, 0]
                for head, matrices in zip(heads, counts):
                    mine, known = (values[rows.to(self.device)], label[part][rows]) if head.sampled else (values, label[part])
                    mine = mine if head.columns is None else mine[:, head.columns]
                    for matrix, predicted in zip(matrices, head.predict(mine)):
                        matrix += confusion_matrix(predicted, known, self.classes)
                        if head is pictured and drawn is not None:
                            drawn[part] = predicted.to(drawn.dtype)
            if drawn is not None:
                self.predictions[number] = drawn
            for i, predicted in zip(several, self._over_views(cache, scene, number, [heads[i] for i in several])):
                counts[i][-1] += confusion_matrix(predicted, label, self.classes)
            progress(number + 1, len(self.val))
        for head, matrices in zip(heads, counts):
            for title, matrix in zip(head.names, matrices):
                yield head, title, _matched(matrix) if title == "clusters" else matrix


    def _over_views(self, cache: FeatureCache, scene: Scene, number: int, heads: list[FittedHead]) -> list[Tensor]:
        """Per head (N,) classes, the most probable ones on average over turns of the scene."""
        total = [torch.zeros(len(scene), self.classes) for _ in heads]
        for view in range(self.config.views if heads else 0):
            scene_turned = turn_scene(scene, 2 * math.pi * view / self.config.views)
            for part, values in cache.source.chunks(scene_turned) if view else cache.chunks(scene, number):
                for kept, head in zip(total, heads):
                    kept[part] += head.probability(values.to(self.device)).cpu()
        return [kept.argmax(1) for kept in total]


def _together(planned: list[PlannedHead], progress: Callable[[int, int], None]) -> Iterator[list[FittedHead]]:
    """Fitted, in groups that hold at most HELD numbers together, or one alone, and take about UNSCORED seconds: a group is
    scored before the next is fitted.
    """
    group, held, begin = [], 0, time.monotonic()
    for number, head in enumerate(planned):
        if group and (held + head.size > HELD or time.monotonic() - begin > UNSCORED):
            yield group
            group, held, begin = [], 0, time.monotonic()
        group.append(head.fit())
        held += head.size
        progress(number + 1, len(planned))
    if group:
        yield group


def _instance_summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {"classes": runs[0]["classes"]}
    for key in ("ap", "ap50", "ap25"):
        values = torch.tensor([run[key] for run in runs], dtype=torch.float64)
        out[key] = {"mean": float(values.mean()), "std": float(values.std(correction=0)), "runs": values.tolist()}
    return out


def _matched(counts: Tensor) -> Tensor:
    match = match_clusters(counts)
    return torch.zeros_like(counts).index_add_(1, match, counts)


def titles(head: str, config: ProbeConfig) -> tuple[str, ...]:
    """Of a head's scores: in one pass, and over several views."""
    return (head,) if config.views == 1 else (head, f"{head}, {config.views} views")


def plan_heads(
    sample: Sample, classes: int, config: ProbeConfig, seed: int, device: torch.device | str, channels: Sequence[int] = ()
) -> Iterator[PlannedHead]:
    """The heads of a config for one seed, none fitted yet. channels: of the levels, for the study of each alone and without."""
    aware = sample.rows()

    def linear(name: str, rows: Tensor, columns: Tensor | None = None) -> PlannedHead:
        names = titles(name, config) if name == "linear" else (name,)

        def fit() -> FittedHead:
            fitted = LinearProbe.fit(
                sample.features, sample.labels, classes, rows=rows, columns=columns, weights=sample.weight, epochs=config.epochs,
                lovasz=config.lovasz, seed=seed, device=device,
            )  # fmt: skip
            several = fitted.probability if len(names) > 1 else None
            return FittedHead(names, seed, lambda x: [fitted(x)], columns, probability=several)

        return PlannedHead(names, seed, fit)

    def nearest(suffix: str, rows: Tensor, ks: tuple[int, ...]) -> PlannedHead:
        names = tuple(f"{k}-nn{suffix}" for k in ks)

        def fit() -> FittedHead:
            kept = sample.draw(rows, config.database, seed)
            fitted = NearestNeighborProbe.fit(sample.features[kept].float(), sample.labels[kept], classes, whiten=True, device=device)
            return FittedHead(names, seed, lambda x: fitted(x, ks), sampled=True)

        return PlannedHead(names, seed, fit, min(len(rows), config.database) * sample.features.shape[1])

    def clusters() -> FittedHead:
        kept = sample.draw(aware, 50_000, seed)
        fitted = KMeans.fit(sample.features[kept], classes, seed=seed, device=device)
        return FittedHead(("clusters",), seed, lambda x: [fitted(x)])

    if "linear" in config.heads:
        yield linear("linear", aware)
    if "nn" in config.heads:
        yield nearest("", aware, config.neighbors)
    if "few" in config.heads:
        for suffix, rows in few_labels(sample, config, seed):
            yield linear(f"linear/{suffix}", rows)
            yield nearest(f"/{suffix}", rows, config.neighbors[:1])
    if "clusters" in config.heads:
        yield PlannedHead(("clusters",), seed, clusters)
    ends = [sum(channels[: i + 1]) for i in range(len(channels))]
    for i, end in enumerate(ends):
        every, own = torch.arange(ends[-1]), torch.arange(end - channels[i], end)
        yield linear(f"linear/level {i} alone", aware, own)
        yield linear(f"linear/without level {i}", aware, every[~torch.isin(every, own)])


def few_labels(sample: Sample, config: ProbeConfig, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Rows that keep their labels: of some scenes, or a few of every scene; listed, or drawn anew for each seed."""
    rng = torch.Generator().manual_seed(seed)
    scenes = sample.scene.unique()
    order = scenes[torch.randperm(len(scenes), generator=rng)]
    aware = sample.rows()
    for part in config.few_scenes:
        kept = order[: max(1, round(part * len(scenes)))]
        yield _listed(sample, scenes_title(part), aware[torch.isin(sample.scene[aware], kept)])
    even = sample.rows(aware=False)
    turn = torch.randperm(EVEN, generator=rng)[sample.even[even]]
    even = even[torch.argsort(sample.scene[even] * EVEN + turn)]
    sizes = torch.unique_consecutive(sample.scene[even], return_counts=True)[1]
    rank = torch.arange(len(even)) - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    for count in config.few_points:
        yield _listed(sample, points_title(count), even[rank < count].sort().values)


def _listed(sample: Sample, title: str, drawn: Tensor) -> tuple[str, Tensor]:
    """The benchmark's rows, by another name, where there is a list with any that have a label."""
    listed = sample.listed.get(title, ())
    return (f"{title}, listed", listed) if len(listed) else (title, drawn)


def asked_points(label: Tensor, count: int, number: int) -> Tensor:
    """(N,) bool: the points of scene `number` that the nearest neighbour is scored on, the same for all sources."""
    known = label >= 0
    if count == 0 or int(known.sum()) <= count:
        return known
    rows = torch.nonzero(known)[:, 0]
    asked = torch.zeros_like(known)
    asked[rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(number))[:count]]] = True
    return asked


def _summary(matrices: list[Tensor]) -> dict[str, Any]:
    """Of the confusion matrices of all seeds."""
    runs, out = [scores(matrix) for matrix in matrices], {}
    for key in ("miou", "macc", "oacc"):
        values = torch.tensor([getattr(run, key) for run in runs], dtype=torch.float64)
        out[key] = {"mean": float(values.mean()), "std": float(values.std(correction=0)), "runs": values.tolist()}
    iou = torch.tensor([run.iou for run in runs], dtype=torch.float64).nanmean(0)
    out["iou"] = [None if torch.isnan(v) else float(v) for v in iou]
    out["confusion"] = matrices[0].tolist()
    return out


def _progress(what: str) -> Callable[[int, int], None]:
    """What is done and what is left: a line that overwrites itself in a terminal, a line a minute elsewhere."""
    begin = said = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        line = f"probe: {what} {done}/{total}, {(now - begin) / done * (total - done):.0f} s left"
        if sys.stderr.isatty():
            end = "\r\x1b[K" if done == total else ""
            print(f"\r\x1b[K{line}{end}", end="", file=sys.stderr, flush=True)
        elif now - said >= LINE_EVERY and done < total:
            said = now
            print(line, file=sys.stderr, flush=True)

    return show
