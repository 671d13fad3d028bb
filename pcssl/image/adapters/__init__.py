"""Small trainable parts in frozen image backbones. Importing this registers the models that have them."""

from pcssl.image.adapters.uniadapter import (
    AdaptedBlock,
    AdaptedViT,
    AdaptedViTConfig,
    UniAdapter,
    inject_adapters,
    remove_adapters,
)

__all__ = ["AdaptedBlock", "AdaptedViT", "AdaptedViTConfig", "UniAdapter", "inject_adapters", "remove_adapters"]
