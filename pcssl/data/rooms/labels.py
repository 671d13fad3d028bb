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
    1: "wall", 2: "floor", 3: "cabinet", 4: "bed", 5: "chair", 6: "sofa", 7: "table", 8: "door", 9: "window", 10:
    "bookshelf", 11: "picture", 12: "counter", 13: "blinds", 14: "desk", 15: "shelves", 16: "curtain", 17:
    "dresser", 18: "pillow", 19: "mirror", 20: "floor mat", 21: "clothes", 22: "ceiling", 23: "books", 24:
    "refridgerator", 25: "television", 26: "paper", 27: "towel", 28: "shower curtain", 29: "box", 30:
    "whiteboard", 32: "night stand", 33: "toilet", 34: "sink", 35: "lamp", 36: "bathtub", 37: "bag", 38:
    "otherstructure", 39: "otherfurniture", 40: "otherprop",
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
    "clothes": Category(32, 21),
    "tv": Category(33, 25),
    "nightstand": Category(34, 32),
    "counter": Category(35, 12),
    "dresser": Category(36, 17),
    "stool": Category(38, 39),
    "cushion": Category(39, 18),
    "plant": Category(40, 40),
    "ceiling": Category(41, 22),
    "bathtub": Category(42, 36),
    "end table": Category(44, 7),
    "dining table": Category(45, 7),
    "keyboard": Category(46, 40),
    "bag": Category(47, 37),
    "backpack": Category(48, 40),
    "toilet paper": Category(49, 40),
    "printer": Category(50, 40),
    "tv stand": Category(51, 39),
    "whiteboard": Category(52, 30),
    "blanket": Category(54, 40),
    "shower curtain": Category(55, 28),
    "trash can": Category(56, 39),
    "microwave": Category(59, 40),
    "stove": Category(62, 39),
    "shoe": Category(63, 40),
    "computer tower": Category(64, 40),
    "bottle": Category(65, 40),
    "ottoman": Category(67, 39),
    "bench": Category(68, 39),
    "washing machine": Category(70, 39),
    "mirror": Category(71, 19),
    "copier": Category(72, 39),
    "basket": Category(73, 40),
    "file cabinet": Category(75, 3),
    "fan": Category(76, 39),
    "laptop": Category(77, 40),
    "paper": Category(79, 26),
    "blinds": Category(86, 13),
    "rack": Category(87, 39),
    "plate": Category(88, 40),
    "blackboard": Category(89, 30),
    "piano": Category(90, 39),
    "suitcase": Category(93, 40),
    "radiator": Category(96, 39),
    "recycling bin": Category(97, 39),
    "wardrobe": Category(99, 39),
    "soap dispenser": Category(100, 40),
    "telephone": Category(101, 40),
    "bucket": Category(102, 40),
    "clock": Category(103, 40),
    "stand": Category(104, 39),
    "light": Category(105, 38),
    "laundry basket": Category(106, 39),
    "guitar": Category(112, 40),
    "speaker": Category(118, 40),
    "bicycle": Category(121, 39),
    "ladder": Category(122, 39),
    "storage bin": Category(132, 39),
    "coffee maker": Category(134, 40),
    "dishwasher": Category(136, 39),
    "mat": Category(140, 20),
    "toaster": Category(148, 40),
    "bulletin board": Category(154, 30),
    "doorframe": Category(154, 8),
    "ironing board": Category(155, 39),
    "fireplace": Category(156, 39),
    "kitchen counter": Category(159, 12),
    "fire extinguisher": Category(166, 40),
    "ball": Category(168, 40),
    "water cooler": Category(177, 39),
    "furniture": Category(213, 39),
    "cart": Category(214, 39),
    "decoration": Category(250, 40),
    "projector": Category(264, 40),
    "vacuum cleaner": Category(283, 40),
    "stuffed animal": Category(304, 40),
    "dish rack": Category(323, 40),
    "broom": Category(325, 40),
    "range hood": Category(342, 39),
    "shower floor": Category(417, 38),
    "treadmill": Category(458, 39),
    "bowl": Category(562, 40),
    "projector screen": Category(609, 30),
    "divider": Category(748, 39),
    "bathroom counter": Category(1156, 12),
    "bathroom vanity": Category(1164, 3),
    "coffee kettle": Category(1176, 40),
    "shower head": Category(1179, 40),
    "coat rack": Category(1182, 39),
}
