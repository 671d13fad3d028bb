"""Transitive invariance: a moved view of an image and a moved view of its neighbour belong together.

Wang, He, Gupta, "Transitive Invariance for Self-supervised Visual Representation Learning", ICCV 2017, arXiv 1708.02901.
The paper's: views A, A' of one instance (frames of a track) are joined by an intra-instance edge, alike views A, B of two
instances by an inter-instance edge, found with features of another self-supervised network; every pair that two such
views reach over one inter edge and at most one intra edge at either end, (A', B') above all, is a positive of a ranking
loss on cosines. No training code of the paper is known; choosing negatives follows the first author's earlier code
(xiaolonw/caffe-video_triplet), with half of them hard after a first part of the run with random ones only.

Ours: inter edges are mutual nearest neighbours, within a batch for images; a track is one plain view and the
other views of an image; every type of pair is drawn as often; negatives are of another connected component, see
`TransitiveGraph.related`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.nn import functional as F

from pcssl.config import Range
from pcssl.image.settings import ImageData
from pcssl.image.tokens import pooled
from pcssl.image.views import ViewConfig
from pcssl.models.heads import head
from pcssl.objectives.image import Embedder, ImageBatch, ImageObjective
from pcssl.registry import register

Count = Annotated[int, Range(1)]
Part = Annotated[float, Range(0, 1)]

INTRA, INTER, ONE_MOVED, TRANSITIVE = range(4)  # A-A', A-B, A'-B, A'-B'
TYPES = (INTRA, INTER, ONE_MOVED, TRANSITIVE)
MOST = 0.9  # of the views in one component: too few are left as negatives


def mutual_knn_edges(features: Tensor, k: int, groups: Tensor | None = None) -> Tensor:
    """Pairs of rows of (N, D) that are among each other's k nearest by cosine: (E, 2) int64, the lower row first, sorted.

    groups: (N,) rows of one group are never joined, nor counted among the k.
    """
    unit = F.normalize(features.float(), dim=1)
    with torch.autocast(unit.device.type, enabled=False):  # rounded to bfloat16 many neighbours are as near
        similarity = unit @ unit.T
    apart = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    if groups is not None:
        apart &= groups[:, None] != groups
    nearest = similarity.masked_fill(~apart, -torch.inf).topk(min(k, len(unit)), dim=1).indices
    near = torch.zeros_like(apart).scatter_(1, nearest, True) & apart
    return torch.nonzero((near & near.T).triu(1))


class TransitiveGraph:
    """Which of `nodes` views belong together. intra: (E1, 2) views of one instance. inter: (E2, 2) of two instances.

    pairs: (P, 2) int64, each once, the lower node first. types: (P,) INTRA, INTER, ONE_MOVED or TRANSITIVE, the first
    of them where a pair is found in several ways. component: (nodes,) int64, equal for nodes that some path connects.
    """

    def __init__(self, intra: Tensor, inter: Tensor, nodes: int):
        a, e = (torch.cat([edges, edges.flip(1)]) for edges in (intra, inter))
        moved = _joined(a, e, nodes)
        found = [a, e, moved, _joined(moved, a, nodes)]
        code = torch.cat([torch.full_like(x[:, 0], i) for i, x in enumerate(found)])
        low, high = torch.cat(found).sort(1).values.T
        code, low, high = code[low < high], low[low < high], high[low < high]
        order = torch.argsort((low * nodes + high) * len(TYPES) + code)
        pairs, count = torch.unique_consecutive(torch.stack([low, high], 1)[order], dim=0, return_counts=True)
        self.nodes, self.pairs, self.types = nodes, pairs, code[order][count.cumsum(0) - count]
        edges = coo_array((torch.ones(len(pairs)).numpy(), pairs.T.cpu().numpy()), shape=(nodes, nodes))
        self.component = torch.from_numpy(connected_components(edges, directed=False)[1]).long().to(pairs.device)

    def sample(self, count: int, types: Sequence[int] = TYPES, generator: torch.Generator | None = None) -> Tensor:
        """(count, 2) pairs in random order of their members, with replacement, every type that there is as often.

        Empty when there is no pair of these types.
        """
        rows = [r for r in (torch.nonzero(self.types == t)[:, 0] for t in types) if len(r)]
        device = self.pairs.device
        parts = [self.pairs[:0]]
        for i, r in enumerate(rows):
            draws = count * (i + 1) // len(rows) - count * i // len(rows)
            parts.append(self.pairs[r[torch.randint(len(r), (draws,), generator=generator, device=device)]])
        drawn = torch.cat(parts)
        turned = torch.rand(len(drawn), generator=generator, device=device) < 0.5
        return torch.where(turned[:, None], drawn.flip(1), drawn)

    def related(self, pairs: Tensor) -> Tensor:
        """Which members of `pairs` (P, 2) of this graph are no negatives of each: (P, 2 P) bool, the first members, then the second.

        Those of its connected component, most of which look alike although the graph does not pair them. Where these
        are more than `MOST` of all members (components of mutual k-NN merge as k grows), those that are paired with
        one of its members, of any type.
        """
        others = pairs.T.flatten()
        found = self.component[pairs[:, :1]] == self.component[others]
        crowded = found.float().mean(1) > MOST
        found[crowded] = self.paired(pairs[crowded, :1], others) | self.paired(pairs[crowded, 1:], others)
        return found

    def paired(self, a: Tensor, b: Tensor) -> Tensor:
        """Whether nodes a and b, of shapes that broadcast, are a pair of the graph, which has one at least."""
        known, wanted = ((torch.minimum(*x) * self.nodes + torch.maximum(*x)) for x in (self.pairs.T, (a, b)))
        return known[torch.searchsorted(known, wanted).clamp(max=len(known) - 1)] == wanted


def _joined(first: Tensor, second: Tensor, nodes: int) -> Tensor:
    """(i, k) for every (i, j) of `first` (E, 2) and (j, k) of `second`."""
    second = second[second[:, 0].argsort()]
    count = torch.bincount(second[:, 0], minlength=nodes)
    each = count[first[:, 1]]
    begin = (count.cumsum(0) - count)[first[:, 1]]
    row = torch.arange(int(each.sum()), device=each.device) + torch.repeat_interleave(begin - (each.cumsum(0) - each), each)
    return torch.stack([torch.repeat_interleave(first[:, 0], each), second[row, 1]], 1)


class RankingLoss(nn.Module):
    """Hinge on D(pair) - D(member, negative) + margin with D = 1 - cosine; negatives are members of other pairs.

    A pair's negatives violate the margin against one of its members at least, and count against both. `negatives` a
    pair: a part `hard_ratio` at random of the `negatives` that violate it most, the others at random of the rest.
    """

    def __init__(self, margin: float = 0.5, negatives: int = 4):
        super().__init__()
        self.margin, self.negatives = margin, negatives

    def forward(self, a: Tensor, b: Tensor, ids: Tensor, hard_ratio: float = 0.5, related: Tensor | None = None) -> Tensor:
        """a, b: (P, D) the members of every pair. ids: (P,) or (P, k); pairs that share one are not each other's negatives.

        related: (P, 2 P) bool, further members, of a and then of b, that are no negatives of a pair.
        The sum of hinges over 2 P `negatives`; 0 of a pair that has none.
        """
        a, b = F.normalize(a.float(), dim=1), F.normalize(b.float(), dim=1)
        ids = ids.view(len(a), -1)
        others = torch.cat([a, b])
        near = (a * b).sum(1, keepdim=True)
        with torch.autocast(a.device.type, enabled=False):
            hinge = sum(F.relu(x @ others.T - near + self.margin) for x in (a, b))  # (P, 2 P), both members
        excluded = (ids[:, None, :, None] == ids[None, :, None, :]).flatten(2).any(2).repeat(1, 2)
        hinge = hinge.masked_fill(excluded if related is None else excluded | related, 0)
        return hinge[self.choose(hinge.detach(), hard_ratio)].sum() / (2 * self.negatives * len(a))

    def choose(self, hinge: Tensor, hard_ratio: float) -> Tensor:
        """(P, N) violations, 0 = none -> (P, N) bool, the negatives; fewer where fewer violate."""
        left = hinge > 0
        chosen = torch.zeros_like(left)
        hard = round(hard_ratio * self.negatives)
        top = torch.zeros_like(left).scatter_(1, hinge.topk(min(self.negatives, hinge.shape[1]), dim=1).indices, True)
        for pool, count in ((top, hard), (~chosen, self.negatives - hard)):
            draw = torch.rand(hinge.shape, device=hinge.device) + (left & pool)
            new = torch.zeros_like(left).scatter_(1, draw.topk(min(count, hinge.shape[1]), dim=1).indices, True) & left & pool
            chosen, left = chosen | new, left & ~new
        return chosen


@dataclass(frozen=True)
class TransitiveConfig:
    """views: a plain one, in which neighbours are found, and one or more moved ones.
    edges: neighbours by the pixels of the plain view, or by the features of the network as it is before the first step
        (with `init`, of a checkpoint; the paper: a network trained by context prediction).
    neighbors: k of the mutual nearest neighbours in the batch, of more than 2 k images: so many a pair of two images
        may be paired with.
    types: of the pairs: intra (A-A'), inter (A-B), one_moved (A'-B), transitive (A'-B').
    pairs: positives of a step. margin, negatives, hard_ratio: see `RankingLoss`; random_first: part of the run with
        random negatives only, against collapse.
    hidden, out: of the head.
    """

    views: tuple[ViewConfig, ...] = (ViewConfig(scale=(1.0, 1.0), flip=0.0), ViewConfig(count=2, scale=(0.2, 1.0)))
    edges: Literal["pixels", "start"] = "pixels"
    neighbors: Count = 1
    types: tuple[Literal["intra", "inter", "one_moved", "transitive"], ...] = ("intra", "inter", "one_moved", "transitive")
    pairs: Count = 256
    margin: Annotated[float, Range(0, low_open=True)] = 0.5
    negatives: Count = 4
    hard_ratio: Part = 0.5
    random_first: Part = 1 / 3
    hidden: Count = 4096
    out: Count = 1024

    def __post_init__(self) -> None:
        if not self.types:
            raise ValueError("types: name one or more")


@register("objective", "transitive", config=TransitiveConfig)
class Transitive(ImageObjective):
    """Works with any image backbone."""

    def __init__(self, config: TransitiveConfig, backbone: nn.Module, data: ImageData, total_steps: int):
        super().__init__(config, backbone, data, total_steps)
        if sum(view.count for view in config.views) < 2:
            raise ValueError("views: transitive needs a plain one and one moved one at least")
        if data.batch_size <= 2 * config.neighbors:
            raise ValueError(
                f"neighbors: {config.neighbors} in batches of {data.batch_size} images can leave a pair without negatives; "
                f"take at most {(data.batch_size - 1) // 2}, or larger batches"
            )
        self.network = Embedder(backbone, head("simclr", backbone.channels[-1], config.hidden, config.out))
        self.start = copy.deepcopy(backbone).eval().requires_grad_(False) if config.edges == "start" else None
        self.loss = RankingLoss(config.margin, config.negatives)

    def train(self, mode: bool = True) -> Transitive:
        super().train(mode)
        if self.start is not None:
            self.start.eval()
        return self

    def backbone(self) -> nn.Module:
        return self.network.backbone

    def forward(self, batch: ImageBatch, step: int) -> dict[str, Tensor]:
        c, images = self.config, len(batch.index)
        inter = mutual_knn_edges(self.reference(batch.views[0]), c.neighbors, batch.index)
        graph = TransitiveGraph(track_edges(images, len(batch.views), batch.index.device), inter, images * len(batch.views))
        pairs = graph.sample(c.pairs, [("intra", "inter", "one_moved", "transitive").index(t) for t in c.types])
        embedding, z = self.network(*batch.views)
        out = {"inter_edges": torch.tensor(float(len(inter)))}
        if len(inter) and bool((batch.label >= 0).all()):  # only to watch
            out["inter_same_label"] = (batch.label[inter[:, 0]] == batch.label[inter[:, 1]]).float().mean()
        if len(pairs):
            a, b = pairs.T
            ratio = c.hard_ratio if step >= c.random_first * self.total_steps else 0.0
            out["loss"] = self.loss(z[a], z[b], batch.index[pairs % images], ratio, graph.related(pairs))
        else:  # a batch without an edge has no gradient but stays valid
            out["loss"] = 0 * z.sum()
        return {**out, **self.health("student", embedding)}

    @torch.no_grad()
    def reference(self, plain: Tensor) -> Tensor:
        """(B, D), what neighbours are found by."""
        return plain.flatten(1) if self.start is None else pooled(self.start(plain))


def track_edges(instances: int, views: int, device: torch.device | str = "cpu") -> Tensor:
    """((views - 1) instances, 2): the first view of every instance with its others; view v of i is node v instances + i."""
    node = torch.arange(instances * views, device=device)[instances:]
    return torch.stack([node % instances, node], 1)
