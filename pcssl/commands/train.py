"""`pcssl train`: learn features without labels, from a config file."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

from pcssl.commands.probe import probe_and_report
from pcssl.config import load_config
from pcssl.data.datasets import SceneSource
from pcssl.errors import UserError
from pcssl.evaluation import ProbeConfig
from pcssl.evaluation.monitor import SmallProbe
from pcssl.sparse import use_engine
from pcssl.training import RunConfig, Stopped, pretrain

_DESCRIPTION = """\
Learn features without labels, as a YAML config says.

  python tools/train.py configs/msm_rooms.yaml                   generated rooms, minutes on a CPU
  python tools/train.py configs/msm_scannet.yaml                 ScanNet, the paper's settings
  python tools/train.py configs/msm_rooms.yaml optimizer.epochs=2 output=runs/try device=cpu

Anything in the config can be set on the command line as key.sub=value. The run's folder
(output=...) gets config.yaml, checkpoint.pt and TensorBoard files. Ctrl-C saves and stops;
--resume continues.
"""


@dataclass(frozen=True)
class ProbeSection(ProbeConfig):
    """after_training: probe the checkpoint on the same dataset when training is done; pictures: of so
    many val scenes. during_training: a small probe every `monitor_every` epochs, to TensorBoard."""

    after_training: bool = False
    during_training: bool = False
    pictures: int = 3


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """A run's config as a file gives it."""

    probe: ProbeSection = field(default_factory=ProbeSection)


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
    config = load_config(args.config, TrainConfig, [*args.overrides, *chosen])
    with use_engine(config.engine):
        return _train_and_probe(config, args.resume)


def _train_and_probe(config: TrainConfig, resume: bool) -> int:
    data = config.data.dataset.build()
    monitor = _small_probe(config, data) if config.probe.during_training else None
    try:
        checkpoint = pretrain(config, data.scenes(config.data.split), resume, monitor)
    except Stopped as stop:
        print(f"pcssl train: stopped; {stop}", file=sys.stderr)
        return 130
    print(f"checkpoint   {checkpoint}\nTensorBoard  tensorboard --logdir {Path(config.output) / 'tensorboard'}")
    if config.probe.after_training:
        probe_and_report(checkpoint, data, config.probe, Path(config.output), config.device, pictures=config.probe.pictures)
    return 0


def _small_probe(config: TrainConfig, data: SceneSource) -> SmallProbe:
    if data.label is None:
        raise UserError("probe.during_training needs a dataset with labels; set label and classes of the dataset")
    splits = (data.scenes(config.probe.train_split), data.scenes(config.probe.val_split))
    return SmallProbe(*splits, data.label, len(data.classes), config.data.voxel_size)
