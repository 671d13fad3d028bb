"""A page for a browser on a `ViewState`, served by viser, which is imported when a page is made and not before."""

from __future__ import annotations

import contextlib
import html
import importlib
import io
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType

import numpy as np

from pcssl.errors import UserError
from pcssl.visualization.colors import HEAT, Legend, Scale, Swatches
from pcssl.visualization.figure import title
from pcssl.visualization.state import ViewState

HELP = "Click a point for the similarity to it. M and N step through the modes, C shows the ceiling."


def load_viser() -> ModuleType:
    """viser, or UserError that says how to install it."""
    try:
        return importlib.import_module("viser")
    except ImportError as error:
        raise UserError("--browser needs viser: pip install 'pcssl[view]' (or use --out)") from error


def check_port(host: str, port: int) -> None:
    """UserError unless a server can listen there. viser alone would take another port, which a tunnel does not know."""
    if not 1 <= port <= 65535:
        raise UserError(f"--port {port}: must be from 1 to 65535")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not the remains of a closed connection
            probe.bind(address)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror or error}; choose another with --port") from error


class Browser:
    """The points of a state on a page; everyone who opens it sees the same. Stop it with `stop`."""

    def __init__(self, state: ViewState, host: str = "127.0.0.1", port: int = 8080):
        viser = load_viser()
        check_port(host, port)
        self.state, self.url = state, f"http://{'localhost' if host in ('127.0.0.1', '0.0.0.0') else host}:{port}"
        self._changing = threading.Lock()  # callbacks come from several threads
        with contextlib.redirect_stdout(io.StringIO()):  # a box around the address, which is said below
            self.server = viser.ViserServer(host=host, port=port, label="pcssl", verbose=False)
        if self.server.get_port() != port:  # taken since it was looked at
            self.server.stop()
            raise UserError(f"--port {port}: already in use; choose another with --port")
        self._controls()
        self._look()
        self._marker = self.server.scene.add_icosphere(
            "/query", radius=max(0.07, 1.5 * state.spacing), color=(20, 220, 80), cast_shadow=False, receive_shadow=False
        )
        self._place_points()
        self._show()

    def run(self) -> None:
        """Serve until Ctrl-C."""
        print(f"open {self.url} (Ctrl-C ends it)", flush=True)
        if self.server.get_host() == "127.0.0.1":
            port = self.server.get_port()
            print(f"from another machine: ssh -L {port}:localhost:{port} THIS-MACHINE, and open it there", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
        finally:
            self.stop()

    def stop(self) -> None:
        self.server.stop()

    def click(self, origin: tuple[float, float, float], direction: tuple[float, float, float]) -> None:
        """A ray from an eye: take similarities to the first point it meets, if any."""
        self._change(lambda: self.state.ask_ray(origin, direction))

    # ------------------------------------------------------------ the page

    def _controls(self) -> None:
        gui = self.server.gui
        gui.configure_theme(show_logo=False, show_share_button=False, control_width="medium")
        self._mode = gui.add_dropdown("mode", self.state.modes, initial_value=self.state.mode)
        self._ceiling = gui.add_checkbox("ceiling", self.state.ceiling)
        self._size = gui.add_slider("point size", min=0.5, max=4.0, step=0.1, initial_value=1.6)
        self._legend = gui.add_html("")
        gui.add_markdown(HELP)
        self._mode.on_update(self._from_controls)
        self._ceiling.on_update(self._from_controls)
        self._size.on_update(lambda _: setattr(self._points, "point_size", self._point_size()))
        for key, name, act in (
            ("M", "next mode", lambda: self.state.step(1)),
            ("N", "one mode before", lambda: self.state.step(-1)),
            ("C", "ceiling", self._flip_ceiling),
        ):
            gui.add_command(name, hotkey=key).on_trigger(lambda _, act=act: self._change(act))
        self.server.scene.on_click()(lambda event: self.click(event.ray_origin, event.ray_direction))

    def _from_controls(self, event) -> None:
        """A control was changed on a page; or by `_show`, which has nobody who did it."""
        if event.client is None:
            return
        if self._mode.value != self.state.mode:
            self._change(lambda: self.state.use(self._mode.value))
        if self._ceiling.value != self.state.ceiling:
            self._change(self._flip_ceiling)

    def _look(self) -> None:
        """From above at an angle, all of it in sight."""
        places = self.state.places[self.state.shown]
        middle = (places.min(0) + places.max(0)) / 2
        away = np.array((0.3, -0.55, 0.55)) * float(np.linalg.norm(np.ptp(places, axis=0)))
        self.server.initial_camera.look_at = tuple(middle.tolist())
        self.server.initial_camera.position = tuple((middle + away).tolist())

    def _change(self, act: Callable[[], object]) -> None:
        with self._changing:
            act()
            self._show()

    def _flip_ceiling(self) -> None:
        self.state.ceiling = not self.state.ceiling
        self._place_points()

    def _place_points(self) -> None:
        shown = self.state.shown
        self._points = self.server.scene.add_point_cloud(
            "/points", self.state.places[shown], self.state.paint()[shown], point_size=self._point_size(),
            point_shape="circle", point_shading="flat", precision="float32",
        )  # fmt: skip

    def _point_size(self) -> float:
        return float(self._size.value) * self.state.spacing

    def _show(self) -> None:
        """Bring the page up to date with the state."""
        with self.server.atomic():
            self._points.colors = self.state.paint()[self.state.shown]
            self._marker.position = tuple(self.state.query_place.tolist())
            self._marker.visible = self.state.mode == "similarity"
            self._legend.content = legend_html(title(self.state.mode), self.state.legend())
            self._mode.value, self._ceiling.value = self.state.mode, self.state.ceiling


def legend_html(heading: str, legend: Legend) -> str:
    """A legend for a page."""
    body = ""
    if isinstance(legend, Scale):
        colors = ", ".join(f"rgb{color}" for color in HEAT)
        bar = f"<span style='flex:1;height:0.9em;border:1px solid #ccc;background:linear-gradient(to right, {colors})'></span>"
        body = f"<div style='display:flex;gap:0.5em;align-items:center'>{legend.low:.1f}{bar}{legend.high:.1f}</div>"
    if isinstance(legend, Swatches):
        body = "".join(
            f"<div><span style='display:inline-block;width:0.9em;height:0.9em;margin-right:0.5em;background:rgb{color}'></span>"
            f"{html.escape(name)}</div>"
            for name, color in legend.entries
        )
    return f"<div style='padding:0 1em;font-size:0.875em;line-height:1.6'><b>{html.escape(heading)}</b>{body}</div>"
