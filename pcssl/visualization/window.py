"""A window of Open3D on a `ViewState`. Open3D is imported when a window is made, and not before."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from types import ModuleType

import numpy as np

from pcssl.errors import UserError, in_one_line
from pcssl.visualization.colors import Legend, Scale, Swatches
from pcssl.visualization.figure import title
from pcssl.visualization.state import ViewState

SIZE = (1280, 800)
DRAGGED = 4  # pixels between press and release that make a drag of a click
HELP = "click: similarity to that point; M, N or 1-9: other modes; C: ceiling; drag, wheel: turn, zoom; Q: close"
PRESS = 1  # an action of GLFW
CONTROL = 2  # a modifier of GLFW


def load_open3d() -> ModuleType:
    """Open3D, or UserError that says what to install."""
    try:
        return importlib.import_module("open3d")
    except ModuleNotFoundError as error:
        if error.name != "open3d":
            raise UserError(f"Open3D cannot be imported: {error}; install it again: pip install open3d") from error
        raise UserError("a window needs Open3D: pip install 'pcssl[view]' (or use --browser, or --out)") from error
    except (ImportError, OSError) as error:  # it comes without the libraries of the system that it links to
        raise UserError(
            f"Open3D cannot be imported: {in_one_line(error)}; on Debian and Ubuntu: apt install libusb-1.0-0 libgl1 "
            "libegl1 libx11-6 (or use --browser, or --out)"
        ) from error


def check_display() -> None:
    """UserError where there is no display to open a window on; Open3D would draw to memory, for ever."""
    if not sys.platform.startswith("linux") or os.environ.get("WAYLAND_DISPLAY"):
        return
    name = os.environ.get("DISPLAY")
    if not name:
        raise UserError("--window: no display (DISPLAY is not set); use --browser from another machine, or --out")
    x11 = ctypes.CDLL("libX11.so.6")
    x11.XOpenDisplay.restype = ctypes.c_void_p
    display = x11.XOpenDisplay(None)
    if not display:
        raise UserError(f"--window: the display {name} cannot be opened; use --browser from another machine, or --out")
    x11.XCloseDisplay(ctypes.c_void_p(display))


class Window:
    """The points of a state as an Open3D window; a click asks for similarities, keys change the mode.

    visible: False draws to memory, without a display.
    """

    def __init__(self, state: ViewState, visible: bool = True):
        self.state = state
        self.open3d = load_open3d()
        self.window = self.open3d.visualization.VisualizerWithKeyCallback()
        if not self.window.create_window("pcssl", *SIZE, visible=visible):
            raise UserError("--window: Open3D could not open a window; use --browser, or --out")
        self._at = self._pressed = (0.0, 0.0)
        self._button: int | None = None
        self._panning = False
        self._cloud = self.open3d.geometry.PointCloud()
        self._marker = self.open3d.geometry.TriangleMesh.create_sphere()
        self._marker.paint_uniform_color((0.1, 0.9, 0.3))
        self._ball = np.array(self._marker.vertices)
        self._fill()
        self.window.add_geometry(self._cloud)
        self.window.add_geometry(self._marker, reset_bounding_box=False)
        self._set_up()

    def _set_up(self) -> None:
        option, control = self.window.get_render_option(), self.window.get_view_control()
        option.background_color, option.light_on = np.ones(3), False
        away, right = np.array((0.5, -0.7, 0.9)), np.array((0.7, 0.5, 0.0))
        control.set_front(away)
        control.set_up(np.cross(away, right))  # upright on `away`: Open3D's camera parameters take it as it is
        control.set_lookat(self.state.places[self.state.shown].mean(0))
        control.set_zoom(0.5)
        option.point_size = self._pixels_of_a_point()
        for key in ("M", "N", "C", *map(str, range(1, 1 + min(9, len(self.state.modes))))):
            self.window.register_key_callback(ord(key), lambda _, key=key: self.on_key(key))
        self.window.register_mouse_button_callback(lambda _, button, action, mods: self.on_button(button, action, mods))
        self.window.register_mouse_move_callback(lambda _, x, y: self.on_move(x, y))
        self.window.register_mouse_scroll_callback(lambda _, x, y: self.on_scroll(y))

    def run(self) -> None:
        """Show until the window is closed."""
        print(HELP)
        self._tell()
        self.window.run()
        self.window.destroy_window()

    def picture(self) -> np.ndarray:
        """(height, width, 3) uint8, what the window shows now."""
        return (np.asarray(self.window.capture_screen_float_buffer(do_render=True)) * 255).round().astype(np.uint8)

    # ------------------------------------------------------------ what a user does

    def on_key(self, key: str) -> bool:
        """M, N, C, or the number of a mode, as in `HELP`."""
        if key.isdigit():
            self.state.use(self.state.modes[int(key) - 1])
        elif key == "C":
            self.state.ceiling = not self.state.ceiling
        else:
            self.state.step(1 if key == "M" else -1)
        return self._redraw()

    def on_move(self, x: float, y: float) -> bool:
        """The mouse is at pixel (x, y): with a button down, turn or shift what is seen."""
        control = self.window.get_view_control()
        by = x - self._at[0], y - self._at[1]
        self._at = (x, y)
        if self._button is not None and self._dragged():
            (control.translate if self._panning else control.rotate)(*by)
        return False

    def on_button(self, button: int, action: int, mods: int = 0) -> bool:
        """A button goes down or up; the left one up where it went down is a click."""
        if action == PRESS:
            self._button, self._pressed = button, self._at
            self._panning = button != 0 or bool(mods & CONTROL)
            return False
        clicked = self._button == 0 and not self._dragged()
        self._button = None
        return clicked and self.click(*self._at)

    def on_scroll(self, y: float) -> bool:
        self.window.get_view_control().scale(-y)
        return False

    def click(self, x: float, y: float) -> bool:
        """Take similarities to the point at a pixel; False when there is none."""
        return self.state.ask_ray(*self._ray(x, y)) and self._redraw()

    def _dragged(self) -> bool:
        return abs(self._at[0] - self._pressed[0]) + abs(self._at[1] - self._pressed[1]) > DRAGGED

    # ------------------------------------------------------------ showing

    def _redraw(self) -> bool:
        self._fill()
        self.window.update_geometry(self._cloud)
        self.window.update_geometry(self._marker)
        self._tell()
        return True

    def _fill(self) -> None:
        shown, vector = self.state.shown, self.open3d.utility.Vector3dVector
        self._cloud.points = vector(self.state.places[shown].astype(float))
        self._cloud.colors = vector(self.state.paint()[shown] / 255.0)
        size = max(0.05, 1.5 * self.state.spacing) if self.state.mode == "similarity" else 0.0
        self._marker.vertices = vector(self._ball * size + self.state.query_place)

    def _tell(self) -> None:
        words = legend_words(self.state.legend())
        print(f"{title(self.state.mode)}{': ' if words else ''}{words}", flush=True)

    def _pixels_of_a_point(self) -> float:
        camera = self.window.get_view_control().convert_to_pinhole_camera_parameters()
        away = np.linalg.norm(self._eye(camera) - self.state.places.mean(0))
        return float(np.clip(2.1 * self.state.spacing * camera.intrinsic.intrinsic_matrix[0, 0] / away, 1.0, 12.0))

    @staticmethod
    def _eye(camera) -> np.ndarray:
        return -camera.extrinsic[:3, :3].T @ camera.extrinsic[:3, 3]

    def _ray(self, x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
        """Eye and direction through a pixel, in the common space."""
        camera = self.window.get_view_control().convert_to_pinhole_camera_parameters()
        pixel = np.linalg.solve(camera.intrinsic.intrinsic_matrix, (x, y, 1.0))
        return self._eye(camera), camera.extrinsic[:3, :3].T @ pixel


def legend_words(legend: Legend) -> str:
    """A legend for a terminal."""
    if isinstance(legend, Scale):
        return f"{legend.low:.1f} pale to {legend.high:.1f} dark"
    return ", ".join(name for name, _ in legend.entries) if isinstance(legend, Swatches) else ""
