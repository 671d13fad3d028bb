"""Pre-training methods, one file each. Importing this package imports every file in it, which registers them."""

import importlib
import pkgutil

from pcssl.objectives.base import Objective
from pcssl.objectives.msm import MSM, MSMConfig
from pcssl.objectives.supervised import Supervised, SupervisedConfig
from pcssl.objectives.teacher import Teacher

__all__ = ["MSM", "MSMConfig", "Objective", "Supervised", "SupervisedConfig", "Teacher"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
