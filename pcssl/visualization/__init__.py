"""Pictures without a display: features as colours, renders of points."""

from pcssl.visualization.charts import bar_chart
from pcssl.visualization.pca import PCAColors
from pcssl.visualization.render import contact_sheet, label_colors, render_points, save_picture, save_png

__all__ = ["PCAColors", "bar_chart", "contact_sheet", "label_colors", "render_points", "save_picture", "save_png"]
