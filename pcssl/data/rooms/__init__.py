"""Generated indoor scans in ScanNet's raw layout."""

from pcssl.data.rooms.collection import generate_rooms
from pcssl.data.rooms.generate import RoomScan, generate_room

__all__ = ["RoomScan", "generate_room", "generate_rooms"]
