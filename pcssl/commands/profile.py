"""`pcssl profile`: where a training step's time goes, and what a run would need."""

from __future__ import annotations

import argparse
from functools import partial

import torch

from pcssl.commands.train import TrainConfig
from pcssl.config import load_config
from pcssl.errors import UserError
from pcssl.sparse import use_engine
from pcssl.training.batches import StepBatches, plan_batches
from pcssl.training.profile import StepProfile, profile_step
from pcssl.training.trainer import make_optimizer, pick_device, pick_precision, seed_everything

_DESCRIPTION = """\
Train the first steps of a config, in its precision, and say where the time of a step goes and how much memory and how
many operations it takes. Samples are made in the training process, one after another. Nothing is saved.

  pcssl profile configs/msm_rooms.yaml
  pcssl profile configs/msm_scannet_small.yaml data.dataset.name=rooms data.dataset.root=data/rooms data.batch_size=1

Kinds are self times of operations by the module that called them, forward and backward together: attention is
whole blocks with their linear layers and feed-forwards, but without their norms.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pcssl profile`."""
    parser.description = _DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("config", help="YAML file, for example configs/msm_rooms.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the file's")
    parser.add_argument("--steps", type=int, default=3, help="timed steps after a first one (default: 3); medians are printed")
    parser.add_argument("--threads", type=int, metavar="T", help="on the CPU")


def run(args: argparse.Namespace) -> int:
    """Print the profile."""
    if args.steps < 1 or (args.threads is not None and args.threads < 1):
        raise UserError("--steps and --threads must be at least 1")
    config = load_config(args.config, TrainConfig, args.overrides)
    device = pick_device(config.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    scenes = config.data.dataset.build().scenes(config.data.split)
    seed_everything(config.seed)
    with use_engine(config.engine) as engine:
        objective = config.objective.build(config.model.build(), config.data, 1000).to(device).train()
        plan = plan_batches(scenes, config.data, config.optimizer.epochs, config.seed)
        batches = StepBatches(scenes, objective.sampler(), objective.collate, plan.indices, config.seed, config.data.change())

        def batch(number: int):
            made, bad = batches[number % plan.total]
            if made is None:
                raise UserError(f"{config.data.item} {bad[0]}")
            return made.to(device)

        found = profile_step(
            objective, make_optimizer(objective, config.optimizer), [partial(batch, i) for i in range(args.steps + 1)],
            config.optimizer.clip, pick_precision(config.precision, device),
        )  # fmt: skip
    where = f"{engine.name} engine, " + (f"{torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name(device))
    print(report(found, objective, where, config.log_every))
    return 0


def report(found: StepProfile, objective: torch.nn.Module, where: str, log_every: int) -> str:
    """The profile as lines of text. log_every: steps between two that take health metrics."""
    total = sum(found.seconds.values())
    lines = [f"a step of {found.voxels / 1000:.1f}k voxels on average, {where}: {1000 * total:.0f} ms"]
    lines += [f"  {name:12}{1000 * s:10.1f} ms{100 * s / total:8.1f} %" for name, s in found.seconds.items()]
    kinds = sum(found.kinds.values())
    lines.append("time of the network's step by kind of work")
    lines += [
        f"  {name:12}{1000 * s:10.1f} ms{100 * s / kinds:8.1f} %"
        for name, s in sorted(found.kinds.items(), key=lambda item: -item[1])
    ]
    learnt = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    fixed = sum(p.numel() for p in objective.parameters()) - learnt
    lines += [
        f"convolution, attention and norm together: {100 * found.core:.0f} %",
        f"health metrics: {1000 * found.watching:.0f} ms more on every {log_every}th step, "
        f"{100 * found.watching / log_every / total:.2f} % of the time",
        f"operations: {found.flops / found.counted / 1e6:.2f} MFLOP a voxel, of products, convolutions and attention",
        f"memory: {found.saved / found.counted / 1000:.1f} kB a voxel kept for the backward pass, and "
        f"{(16 * learnt + 4 * fixed) / 1e9:.2f} GB for {learnt / 1e6:.1f} M weights, gradients, AdamW and the teacher",
    ]
    return "\n".join(lines)
