"""The categories that generated rooms use, in ScanNet's numbering.

`id` is ScanNet's raw category id (what the 200-class benchmark uses), `nyu40` the NYU class (of
which the 20-class benchmark keeps twenty).
"""

from __future__ import annotations

from typing import NamedTuple


class Category(NamedTuple):
    id: int
    nyu40: int


NYU40_NAMES = {
    1: "wall", 2: "floor", 3: "cabinet", 4: "bed", 5: "chair", 6: "sofa", 7: "table", 8: "door",
    9: "window", 10: "bookshelf", 11: "picture", 12: "counter", 14: "desk", 15: "shelves",
    16: "curtain", 17: "dresser", 18: "pillow", 19: "mirror", 20: "floor mat", 22: "ceiling",
    23: "books", 24: "refridgerator", 25: "television", 27: "towel", 28: "shower curtain",
    29: "box", 30: "whiteboard", 32: "night stand", 33: "toilet", 34: "sink", 35: "lamp",
    36: "bathtub", 37: "bag", 39: "otherfurniture", 40: "otherprop",
}  # fmt: skip

# The classes of the 20-class benchmark, by nyu40 id.
BENCHMARK_20 = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39)

CATEGORIES = {
    "wall": Category(1, 1),
    "chair": Category(2, 5),
    "floor": Category(3, 2),
    "table": Category(4, 7),
    "door": Category(5, 8),
    "couch": Category(6, 6),
    "cabinet": Category(7, 3),
    "shelf": Category(8, 15),
    "desk": Category(9, 14),
    "office chair": Category(10, 5),
    "bed": Category(11, 4),
    "pillow": Category(13, 18),
    "sink": Category(14, 34),
    "picture": Category(15, 11),
    "window": Category(16, 9),
    "toilet": Category(17, 33),
    "bookshelf": Category(18, 10),
    "monitor": Category(19, 40),
    "curtain": Category(21, 16),
    "book": Category(22, 23),
    "armchair": Category(23, 5),
    "coffee table": Category(24, 7),
    "box": Category(26, 29),
    "refrigerator": Category(27, 24),
    "lamp": Category(28, 35),
    "kitchen cabinet": Category(29, 3),
    "towel": Category(31, 27),
    "tv": Category(33, 25),
    "nightstand": Category(34, 32),
    "counter": Category(35, 12),
    "dresser": Category(36, 17),
    "cushion": Category(39, 18),
    "plant": Category(40, 40),
    "ceiling": Category(41, 22),
    "bathtub": Category(42, 36),
    "end table": Category(44, 7),
    "dining table": Category(45, 7),
    "keyboard": Category(46, 40),
    "bag": Category(47, 37),
    "tv stand": Category(51, 39),
    "whiteboard": Category(52, 30),
    "shower curtain": Category(55, 28),
    "trash can": Category(56, 39),
    "ottoman": Category(67, 39),
    "bench": Category(68, 39),
    "mirror": Category(71, 19),
    "file cabinet": Category(75, 3),
    "radiator": Category(96, 39),
    "wardrobe": Category(99, 39),
    "mat": Category(140, 20),
    "kitchen counter": Category(159, 12),
    "bathroom vanity": Category(1164, 3),
}
