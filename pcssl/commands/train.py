"""`pcssl train`: learn features without labels, from a config file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pcssl.commands.probe import probe_and_report, probe_images_and_report
from pcssl.config import Range, load_config
from pcssl.data.datasets import SceneSource
from pcssl.errors import UserError
from pcssl.evaluation import ImageProbeConfig, ProbeConfig
from pcssl.evaluation.images import SmallImageProbe
from pcssl.evaluation.monitor import SmallProbe
from pcssl.image.datasets import ImageSource
from pcssl.sparse import use_engine
from pcssl.training import ImageRunConfig, RunConfig, Stopped, pretrain

_DESCRIPTION = """\
Learn features without labels, as a YAML config says.

  python tools/train.py configs/msm_rooms.yaml                   generated rooms, minutes on a CPU
  python tools/train.py configs/msm_scannet.yaml                 ScanNet, the paper's settings
  python tools/train.py configs/image/dino.yaml                  images, under a minute on a CPU
  python tools/train.py configs/msm_rooms.yaml optimizer.epochs=2 output=runs/try device=cpu

Anything in the config can be set on the command line as key.sub=value. The run's folder
(output=...) gets config.yaml, checkpoint.pt, TensorBoard files and at the end model.safetensors.
Ctrl-C saves and stops; --resume continues.
"""


@dataclass(frozen=True)
class ProbeSection(ProbeConfig):
    """after_training: probe the checkpoint on the same dataset when training is done; pictures: of so
    many val scenes. during_training: a small probe every `monitor_every` epochs, to TensorBoard."""

    after_training: bool = False
    during_training: bool = False
    pictures: Annotated[int, Range(0)] = 3


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """A run's config as a file gives it."""

    probe: ProbeSection = field(default_factory=ProbeSection)


@dataclass(frozen=True)
class ImageProbeSection(ImageProbeConfig):
    """after_training: probe the checkpoint when training is done. during_training: a small probe every
    `monitor_every` epochs, to TensorBoard."""

    after_training: bool = False
    during_training: bool = False


@dataclass(frozen=True)
class ImageTrainConfig(ImageRunConfig):
    """A run on images, as a file gives it with `kind: images`."""

    probe: ImageProbeSection = field(default_factory=ImageProbeSection)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pcssl train`."""
    parser.description = _DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("config", help="YAML file, for example configs/msm_rooms.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the file's")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in the run's folder, if there is one")
    parser.add_argument("--engine", metavar="NAME", help="the same as engine=NAME: auto, native, reference or spconv")


def run(args: argparse.Namespace) -> int:
    """Train, then probe if the config says so."""
    chosen = [f"engine={args.engine}"] if args.engine else []
    config = load_config(args.config, TrainConfig | ImageTrainConfig, [*args.overrides, *chosen])
    with use_engine(config.engine):
        return _train_and_probe(config, args.resume)


def _train_and_probe(config: TrainConfig | ImageTrainConfig, resume: bool) -> int:
    data = config.data.dataset.build()
    items = _items(config, data)
    monitor = _small_probe(config, data) if config.probe.during_training else None
    try:
        checkpoint = pretrain(config, items, resume, monitor)
    except Stopped as stop:
        print(f"pcssl train: stopped; {stop}", file=sys.stderr)
        return 130
    print(f"checkpoint   {checkpoint}\nTensorBoard  tensorboard --logdir {Path(config.output) / 'tensorboard'}")
    if config.probe.after_training and isinstance(config, ImageTrainConfig):
        probe_images_and_report(checkpoint, data, config.probe, Path(config.output), config.device, config)
    elif config.probe.after_training:
        probe_and_report(checkpoint, data, config.probe, Path(config.output), config.device, config.probe.pictures, settings=config)
    return 0


def _items(config: TrainConfig | ImageTrainConfig, data: SceneSource | ImageSource) -> Sequence[Any]:
    """The scenes or images to train on."""
    if isinstance(data, ImageSource) != isinstance(config, ImageTrainConfig):
        right = "images" if isinstance(data, ImageSource) else "scenes"
        raise UserError(f"data.dataset.name: {config.data.dataset.name} holds {right}, but the config says kind: {config.kind}")
    return data.images(config.data.split) if isinstance(data, ImageSource) else data.scenes(config.data.split)


def _small_probe(config: TrainConfig | ImageTrainConfig, data: SceneSource | ImageSource) -> SmallProbe | SmallImageProbe:
    if isinstance(data, ImageSource):
        if not data.classes:
            raise UserError("probe.during_training needs labels: put the images into a folder a class")
        size = max(view.size for view in config.objective.options.views)
        return SmallImageProbe(data, config.probe, size, config.data.channels)
    if data.label is None:
        raise UserError("probe.during_training needs a dataset with labels; set label and classes of the dataset")
    splits = (data.scenes(config.probe.train_split), data.scenes(config.probe.val_split))
    return SmallProbe(*splits, data.label, len(data.classes), config.data.voxel_size)
