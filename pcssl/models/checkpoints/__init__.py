"""Readers of weights that others have released."""

from pcssl.models.checkpoints.msm import hunet_config_from_released, released_state

__all__ = ["hunet_config_from_released", "released_state"]
