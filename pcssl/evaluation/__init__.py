"""How good features are: multi-resolution features, linear probe, nearest neighbour."""

from pcssl.evaluation.features import PointFeatures, point_inputs
from pcssl.evaluation.linear import LinearProbe
from pcssl.evaluation.metrics import Scores, confusion_matrix, scores
from pcssl.evaluation.neighbors import NearestNeighborProbe
from pcssl.evaluation.pretrained import PretrainedModel, load_model
from pcssl.evaluation.probe import ProbeConfig, probe

__all__ = [
    "LinearProbe",
    "NearestNeighborProbe",
    "PointFeatures",
    "PretrainedModel",
    "ProbeConfig",
    "Scores",
    "confusion_matrix",
    "load_model",
    "point_inputs",
    "probe",
    "scores",
]
