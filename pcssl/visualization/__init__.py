"""Pictures without a display: features as colours, renders of points."""

from pcssl.visualization.pca import PCAColors
from pcssl.visualization.render import contact_sheet, label_colors, render_points, save_png

__all__ = ["PCAColors", "contact_sheet", "label_colors", "render_points", "save_png"]
