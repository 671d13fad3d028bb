"""Pre-training: the loop, checkpoints, logging."""

from pcssl.training.checkpoint import load_checkpoint, save_checkpoint
from pcssl.training.settings import ImageRunConfig, OptimizerConfig, RunConfig
from pcssl.training.trainer import Stopped, pretrain

__all__ = ["ImageRunConfig", "OptimizerConfig", "RunConfig", "Stopped", "load_checkpoint", "pretrain", "save_checkpoint"]
