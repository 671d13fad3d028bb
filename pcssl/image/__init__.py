"""Images: pictures and datasets, views, backbones. The methods on them are files in pcssl/objectives, as the 3D ones."""

from pcssl.image.datasets import ImageSource
from pcssl.image.picture import Picture, read_picture
from pcssl.image.settings import ImageData
from pcssl.image.tokens import ImageTokens, pooled
from pcssl.image.views import ViewConfig, make_views, to_source

__all__ = ["ImageData", "ImageSource", "ImageTokens", "Picture", "ViewConfig", "make_views", "pooled", "read_picture", "to_source"]
