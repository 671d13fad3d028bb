"""Reading a scan from a file, and writing one.

A format is one function in `READERS`: (path, options) -> `RawScan`, what the file holds and nothing else.
`read_scene` puts every format's points into metres with z up and makes a `Scene` of them.
"""

from pcssl.data.formats.frame import UP_AXES
from pcssl.data.formats.ply import write_ply
from pcssl.data.formats.read import READERS, complete, read_raw, read_scene
from pcssl.data.formats.scan import RawScan, ReadOptions, to_color

__all__ = [
    "READERS",
    "RawScan",
    "ReadOptions",
    "UP_AXES",
    "complete",
    "read_raw",
    "read_scene",
    "to_color",
    "write_ply",
]
