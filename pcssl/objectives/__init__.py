"""Pre-training methods, one file each. Importing this package registers them."""

from pcssl.objectives.base import Objective
from pcssl.objectives.msm import MSM, MSMConfig
from pcssl.objectives.supervised import Supervised, SupervisedConfig
from pcssl.objectives.teacher import Teacher

__all__ = ["MSM", "MSMConfig", "Objective", "Supervised", "SupervisedConfig", "Teacher"]
