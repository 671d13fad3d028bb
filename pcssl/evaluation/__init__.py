"""How good features are: multi-resolution features, linear probe, nearest neighbour."""

from pcssl.evaluation.features import PointFeatures, point_inputs
from pcssl.evaluation.images import ImageModel, ImageProbeConfig, load_image_model, probe_images
from pcssl.evaluation.linear import LinearProbe
from pcssl.evaluation.metrics import Scores, confusion_matrix, scores
from pcssl.evaluation.neighbors import NearestNeighborProbe
from pcssl.evaluation.pretrained import PretrainedModel, load_model
from pcssl.evaluation.probe import ProbeConfig, probe
from pcssl.evaluation.ridge import RidgeProbe

__all__ = [
    "ImageModel",
    "ImageProbeConfig",
    "LinearProbe",
    "NearestNeighborProbe",
    "PointFeatures",
    "PretrainedModel",
    "ProbeConfig",
    "RidgeProbe",
    "Scores",
    "confusion_matrix",
    "load_image_model",
    "load_model",
    "point_inputs",
    "probe",
    "probe_images",
    "scores",
]
