"""The classes of ScanNet's two benchmarks, as facts: ids, names, and the official 20 colours.

`segment20.npy` and `segment200.npy` hold the position in these tuples, -1 where a point has none.
"""

from __future__ import annotations

# ids of the NYU40 label set
SCANNET20_IDS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39)

SCANNET20_NAMES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture",
    "counter", "desk", "curtain", "refrigerator", "shower curtain", "toilet", "sink", "bathtub", "otherfurniture",
)  # fmt: skip

SCANNET20_COLORS = (
    (174, 199, 232), (152, 223, 138), (31, 119, 180), (255, 187, 120), (188, 189, 34), (140, 86, 75), (255, 152, 150),
    (214, 39, 40), (197, 176, 213), (148, 103, 189), (196, 156, 148), (23, 190, 207), (247, 182, 210), (219, 219, 141),
    (255, 127, 14), (158, 218, 229), (44, 160, 44), (112, 128, 144), (227, 119, 194), (82, 84, 163),
)  # fmt: skip

# the `id` column of scannetv2-labels.combined.tsv
SCANNET200_IDS = (
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18, 19, 21, 22, 23, 24, 26, 27, 28, 29, 31, 32, 33, 34, 35,
    36, 38, 39, 40, 41, 42, 44, 45, 46, 47, 48, 49, 50, 51, 52, 54, 55, 56, 57, 58, 59, 62, 63, 64, 65, 66, 67, 68, 69,
    70, 71, 72, 73, 74, 75, 76, 77, 78, 79, 80, 82, 84, 86, 87, 88, 89, 90, 93, 95, 96, 97, 98, 99, 100, 101, 102, 103,
    104, 105, 106, 107, 110, 112, 115, 116, 118, 120, 121, 122, 125, 128, 130, 131, 132, 134, 136, 138, 139, 140, 141,
    145, 148, 154, 155, 156, 157, 159, 161, 163, 165, 166, 168, 169, 170, 177, 180, 185, 188, 191, 193, 195, 202, 208,
    213, 214, 221, 229, 230, 232, 233, 242, 250, 261, 264, 276, 283, 286, 300, 304, 312, 323, 325, 331, 342, 356, 370,
    392, 395, 399, 408, 417, 488, 540, 562, 570, 572, 581, 609, 748, 776, 1156, 1163, 1164, 1165, 1166, 1167, 1168,
    1169, 1170, 1171, 1172, 1173, 1174, 1175, 1176, 1178, 1179, 1180, 1181, 1182, 1183, 1184, 1185, 1186, 1187, 1188,
    1189, 1190, 1191,
)  # fmt: skip

SCANNET200_NAMES = (
    "wall", "chair", "floor", "table", "door", "couch", "cabinet", "shelf", "desk", "office chair", "bed", "pillow",
    "sink", "picture", "window", "toilet", "bookshelf", "monitor", "curtain", "book", "armchair", "coffee table", "box",
    "refrigerator", "lamp", "kitchen cabinet", "towel", "clothes", "tv", "nightstand", "counter", "dresser", "stool",
    "cushion", "plant", "ceiling", "bathtub", "end table", "dining table", "keyboard", "bag", "backpack",
    "toilet paper", "printer", "tv stand", "whiteboard", "blanket", "shower curtain", "trash can", "closet", "stairs",
    "microwave", "stove", "shoe", "computer tower", "bottle", "bin", "ottoman", "bench", "board", "washing machine",
    "mirror", "copier", "basket", "sofa chair", "file cabinet", "fan", "laptop", "shower", "paper", "person",
    "paper towel dispenser", "oven", "blinds", "rack", "plate", "blackboard", "piano", "suitcase", "rail", "radiator",
    "recycling bin", "container", "wardrobe", "soap dispenser", "telephone", "bucket", "clock", "stand", "light",
    "laundry basket", "pipe", "clothes dryer", "guitar", "toilet paper holder", "seat", "speaker", "column", "bicycle",
    "ladder", "bathroom stall", "shower wall", "cup", "jacket", "storage bin", "coffee maker", "dishwasher",
    "paper towel roll", "machine", "mat", "windowsill", "bar", "toaster", "bulletin board", "ironing board",
    "fireplace", "soap dish", "kitchen counter", "doorframe", "toilet paper dispenser", "mini fridge",
    "fire extinguisher", "ball", "hat", "shower curtain rod", "water cooler", "paper cutter", "tray", "shower door",
    "pillar", "ledge", "toaster oven", "mouse", "toilet seat cover dispenser", "furniture", "cart",
    "storage container", "scale", "tissue box", "light switch", "crate", "power outlet", "decoration", "sign",
    "projector", "closet door", "vacuum cleaner", "candle", "plunger", "stuffed animal", "headphones", "dish rack",
    "broom", "guitar case", "range hood", "dustpan", "hair dryer", "water bottle", "handicap bar", "purse", "vent",
    "shower floor", "water pitcher", "mailbox", "bowl", "paper bag", "alarm clock", "music stand", "projector screen",
    "divider", "laundry detergent", "bathroom counter", "object", "bathroom vanity", "closet wall", "laundry hamper",
    "bathroom stall door", "ceiling light", "trash bin", "dumbbell", "stair rail", "tube", "bathroom cabinet",
    "cd case", "closet rod", "coffee kettle", "structure", "shower head", "keyboard piano", "case of water bottles",
    "coat rack", "storage organizer", "folded chair", "fire alarm", "power strip", "calendar", "poster",
    "potted plant", "luggage", "mattress",
)  # fmt: skip

# in the order of SCANNET200_NAMES
SCANNET200_COLORS = (
    (174, 199, 232), (188, 189, 34), (152, 223, 138), (255, 152, 150), (214, 39, 40), (91, 135, 229), (31, 119, 180),
    (229, 91, 104), (247, 182, 210), (91, 229, 110), (255, 187, 120), (141, 91, 229), (112, 128, 144), (196, 156, 148),
    (197, 176, 213), (44, 160, 44), (148, 103, 189), (229, 91, 223), (219, 219, 141), (192, 229, 91), (88, 218, 137),
    (58, 98, 137), (177, 82, 239), (255, 127, 14), (237, 204, 37), (41, 206, 32), (62, 143, 148), (34, 14, 130),
    (143, 45, 115), (137, 63, 14), (23, 190, 207), (16, 212, 139), (90, 119, 201), (125, 30, 141), (150, 53, 56),
    (186, 197, 62), (227, 119, 194), (38, 100, 128), (120, 31, 243), (154, 59, 103), (169, 137, 78), (143, 245, 111),
    (37, 230, 205), (14, 16, 155), (196, 51, 182), (237, 80, 38), (138, 175, 62), (158, 218, 229), (38, 96, 167),
    (190, 77, 246), (208, 49, 84), (208, 193, 72), (55, 220, 57), (10, 125, 140), (76, 38, 202), (191, 28, 135),
    (211, 120, 42), (118, 174, 76), (17, 242, 171), (20, 65, 247), (208, 61, 222), (162, 62, 60), (210, 235, 62),
    (45, 152, 72), (35, 107, 149), (160, 89, 237), (227, 56, 125), (169, 143, 81), (42, 143, 20), (25, 160, 151),
    (82, 75, 227), (253, 59, 222), (240, 130, 89), (123, 172, 47), (71, 194, 133), (24, 94, 205), (134, 16, 179),
    (159, 32, 52), (213, 208, 88), (64, 158, 70), (18, 163, 194), (65, 29, 153), (177, 10, 109), (152, 83, 7),
    (83, 175, 30), (18, 199, 153), (61, 81, 208), (213, 85, 216), (170, 53, 42), (161, 192, 38), (23, 241, 91),
    (12, 103, 170), (151, 41, 245), (133, 51, 80), (184, 162, 91), (50, 138, 38), (31, 237, 236), (39, 19, 208),
    (223, 27, 180), (254, 141, 85), (97, 144, 39), (106, 231, 176), (12, 61, 162), (124, 66, 140), (137, 66, 73),
    (250, 253, 26), (55, 191, 73), (60, 126, 146), (153, 108, 234), (184, 58, 125), (135, 84, 14), (139, 248, 91),
    (53, 200, 172), (63, 69, 134), (190, 75, 186), (127, 63, 52), (141, 182, 25), (56, 144, 89), (64, 160, 250),
    (182, 86, 245), (139, 18, 53), (134, 120, 54), (49, 165, 42), (51, 128, 133), (44, 21, 163), (232, 93, 193),
    (176, 102, 54), (116, 217, 17), (54, 209, 150), (60, 99, 204), (129, 43, 144), (252, 100, 106), (187, 196, 73),
    (13, 158, 40), (52, 122, 152), (128, 76, 202), (187, 50, 115), (180, 141, 71), (77, 208, 35), (72, 183, 168),
    (97, 99, 203), (172, 22, 158), (155, 64, 40), (118, 159, 30), (69, 252, 148), (45, 103, 173), (111, 38, 149),
    (184, 9, 49), (188, 174, 67), (53, 206, 53), (97, 235, 252), (66, 32, 182), (236, 114, 195), (241, 154, 83),
    (133, 240, 52), (16, 205, 144), (75, 101, 198), (237, 95, 251), (191, 52, 49), (227, 254, 54), (49, 206, 87),
    (48, 113, 150), (125, 73, 182), (229, 32, 114), (158, 119, 28), (60, 205, 27), (18, 215, 201), (79, 76, 153),
    (134, 13, 116), (192, 97, 63), (108, 163, 18), (95, 220, 156), (98, 141, 208), (144, 19, 193), (166, 36, 57),
    (212, 202, 34), (23, 206, 34), (91, 211, 236), (79, 55, 137), (182, 19, 117), (134, 76, 14), (87, 185, 28),
    (82, 224, 187), (92, 110, 214), (168, 80, 171), (197, 63, 51), (175, 199, 77), (62, 180, 98), (8, 91, 150),
    (77, 15, 130), (154, 65, 96), (197, 152, 11), (59, 155, 45), (12, 147, 145), (54, 35, 219), (210, 73, 181),
    (221, 124, 77), (149, 214, 66), (72, 185, 134), (42, 94, 198),
)  # fmt: skip

# The benchmark's groups by how many points a class has; the tail is the rest.
_HEAD = (
    "tv stand", "curtain", "blinds", "shower curtain", "bookshelf", "tv", "kitchen cabinet", "pillow", "lamp",
    "dresser", "monitor", "object", "ceiling", "board", "stove", "closet wall", "couch", "office chair",
    "kitchen counter", "shower", "closet", "doorframe", "sofa chair", "mailbox", "nightstand", "washing machine",
    "picture", "book", "sink", "recycling bin", "table", "backpack", "shower wall", "toilet", "copier", "counter",
    "stool", "refrigerator", "window", "file cabinet", "chair", "wall", "plant", "coffee table", "stairs", "armchair",
    "cabinet", "bathroom vanity", "bathroom stall", "mirror", "blackboard", "trash can", "stair rail", "box", "towel",
    "door", "clothes", "whiteboard", "bed", "floor", "bathtub", "desk", "wardrobe", "clothes dryer", "radiator",
    "shelf",
)  # fmt: skip
_COMMON = (
    "cushion", "end table", "dining table", "keyboard", "bag", "toilet paper", "printer", "blanket", "microwave",
    "shoe", "computer tower", "bottle", "bin", "ottoman", "bench", "basket", "fan", "laptop", "person",
    "paper towel dispenser", "oven", "rack", "piano", "suitcase", "rail", "container", "telephone", "stand", "light",
    "laundry basket", "pipe", "seat", "column", "bicycle", "ladder", "jacket", "storage bin", "coffee maker",
    "dishwasher", "machine", "mat", "windowsill", "bulletin board", "fireplace", "mini fridge", "water cooler",
    "shower door", "pillar", "ledge", "furniture", "cart", "decoration", "closet door", "vacuum cleaner", "dish rack",
    "range hood", "projector screen", "divider", "bathroom counter", "laundry hamper", "bathroom stall door",
    "ceiling light", "trash bin", "bathroom cabinet", "structure", "storage organizer", "potted plant", "mattress",
)  # fmt: skip

# group -> positions in SCANNET200_NAMES
SCANNET200_GROUPS = {
    "head": tuple(sorted(map(SCANNET200_NAMES.index, _HEAD))),
    "common": tuple(sorted(map(SCANNET200_NAMES.index, _COMMON))),
    "tail": tuple(i for i, name in enumerate(SCANNET200_NAMES) if name not in _HEAD + _COMMON),
}
