"""Room types: what stands in each. What does not fit is left out, so that the same recipe gives
sparse and crowded rooms. The tables say what occurs with what; `rules` says how it is put."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pcssl.data.rooms import appliances, beds, clutter, fixtures, openings, rules, seating, storage, tables
from pcssl.data.rooms.layout import Room
from pcssl.data.rooms.piece import Kit
from pcssl.data.rooms.plan import flat, windows

ON_DESK = (clutter.keyboard, clutter.book_stack, clutter.lamp, clutter.paper_stack, clutter.bottles, clutter.small_carton,
           clutter.telephone, clutter.pot_plant, clutter.photo_frame, clutter.printer, clutter.speaker)  # fmt: skip
ON_TABLE = (clutter.dishes, clutter.dishes, clutter.bottles, clutter.fruit_bowl, clutter.vase, clutter.book_stack,
            clutter.pot_plant, clutter.laptop, clutter.small_carton)  # fmt: skip
ON_COUNTER = (clutter.appliance, clutter.appliance, clutter.bottles, clutter.dish_rack, clutter.pot, clutter.dishes,
              clutter.small_carton, clutter.paper_roll, clutter.fruit_bowl)  # fmt: skip
ON_CABINET = (clutter.book_stack, clutter.small_carton, clutter.lamp, clutter.pot_plant, clutter.vase, clutter.photo_frame,
              clutter.folded_cloth, clutter.basket, clutter.speaker)  # fmt: skip
ON_SHELF = (clutter.small_carton, clutter.basket, clutter.vase, clutter.pot_plant, clutter.book_stack)
IN_BATH = (clutter.soap, clutter.soap, clutter.paper_roll, clutter.folded_cloth, clutter.basket)
ON_BED = (clutter.folded_cloth, clutter.cushion, clutter.toy, clutter.book_stack, clutter.laptop)
ON_MEETING = (clutter.laptop, clutter.paper_stack, clutter.bottles, clutter.projector, clutter.telephone)


def bedroom(room: Room) -> None:
    kit = room.kit
    for _ in range(2 if kit.chance(0.45) else 1):
        make = rules.draw(kit, ((beds.bed, 8), (beds.bunk_bed, 1), (beds.day_bed, 1)))
        spot = room.against_wall(make(kit), tries=60)
        rules.topped(room, spot, ON_BED, 2)
        for side in (-1, 1):
            if spot and kit.chance(0.7):
                small = kit.pick((storage.nightstand, storage.nightstand, tables.end_table))(kit)
                rules.topped(room, room.beside(small, spot, side, kit.uniform(0.03, 0.12)), (clutter.lamp, *ON_CABINET), 2)
    if kit.chance(0.7):
        rules.work_place(room, ON_DESK)
    _along_walls(room, ((storage.wardrobe, 2), (storage.dresser, 2), (storage.storage_cabinet, 2)), 2)


def living_room(room: Room) -> None:
    kit = room.kit
    for _ in range(kit.integer(1, 3)):
        make = kit.pick((seating.sofa, seating.sofa, seating.corner_sofa))
        spot = room.against_wall(make(kit), tries=60, front=0.4)
        if not spot:
            continue
        table = tables.coffee_table(kit)
        ahead = spot.group.size[1] / 2 + kit.uniform(0.25, 0.45) + table.size[1] / 2
        there = room.stand(table, *spot.at(kit.uniform(-0.3, 0.3), ahead), spot.angle)
        rules.topped(room, there, ON_TABLE, 3)
        for side in (-1, 1):
            if kit.chance(0.4):
                rules.topped(room, room.beside(tables.end_table(kit), spot, side, 0.08), (clutter.lamp, *ON_CABINET), 2)
    stand = room.against_wall(storage.tv_stand(kit), front=0.3)
    if stand:
        room.on_top(clutter.television(kit), stand, stand.group.tops[0], True)
    for _ in range(kit.integer(0, 2)):
        _loose(room, (seating.armchair, seating.armchair, seating.ottoman))
    _along_walls(room, ((storage.bookshelf, 3), (storage.cube_shelf, 2), (storage.sideboard, 2)), kit.integer(1, 3))
    if kit.chance(0.6):
        rules.dining_set(room, ON_TABLE)


def kitchen(room: Room) -> None:
    kit = room.kit
    run = rules.kitchen_wall(room, ON_COUNTER, kit.uniform(1.6, 3.0))
    for make in (fixtures.refrigerator, storage.tall_cabinet) if kit.chance(0.6) else (fixtures.refrigerator,):
        for side in (-1, 1) if kit.chance(0.5) else (1, -1):
            if room.beside(make(kit), run, side, 0.02):
                break
        else:
            room.against_wall(make(kit), tries=40, corner=kit.chance(0.5))
    if kit.chance(0.35):
        spot = room.in_the_open(fixtures.counter_block(kit), 0.5, turn=run.angle if run else None)
        rules.topped(room, spot, ON_COUNTER, 2)
        if spot and kit.chance(0.5):
            for x in (-0.35, 0.35):
                rules.chair_at(room, spot, seating.stool, x, 1, spot.group.size[1])
    rules.dining_set(room, ON_TABLE)


def bathroom(room: Room) -> None:
    kit = room.kit
    tub = kit.chance(0.55) and room.against_wall(fixtures.bathtub(kit), tries=80, corner=True)
    if not tub or kit.chance(0.2):
        room.against_wall(fixtures.shower_corner(kit), tries=60, corner=True)
    room.against_wall(fixtures.toilet(kit), tries=80, front=0.35)
    for _ in range(2 if kit.chance(0.15) else 1):
        basin = fixtures.vanity(kit) if kit.chance(0.5) else fixtures.pedestal_sink(kit)
        spot = room.against_wall(basin, tries=80, front=0.35)
        rules.topped(room, spot, IN_BATH, 2)
        if spot and kit.chance(0.8):
            w, h, z = kit.uniform(0.4, 0.8), kit.uniform(0.5, 0.8), kit.uniform(1.1, 1.3)
            rect = rules.Rect(spot.u - w / 2, spot.u + w / 2, z, z + h)
            room.on_wall(openings.panel(kit, "mirror", w, h, z), spot.wall, spot.u, rect)
    for _ in range(kit.integer(1, 2)):
        rules.hang(room, openings.towel, kit.uniform(0.35, 0.6), kit.uniform(0.4, 0.8), 1.1)


def office(room: Room) -> None:
    kit = room.kit
    for _ in range(kit.integer(2, 6)):
        rules.work_place(room, ON_DESK)
    if kit.chance(0.5):
        rules.dining_set(room, ON_MEETING)
    _along_walls(room, ((storage.bookshelf, 3), (storage.file_cabinet, 2), (storage.storage_cabinet, 2)), kit.integer(1, 4))
    if kit.chance(0.6):
        rules.board(room)
    if kit.chance(0.4):
        _loose(room, (seating.armchair, seating.sofa))


def meeting_room(room: Room) -> None:
    """A long table with chairs, a board; now and then a lounge with a counter instead."""
    kit = room.kit
    spot = None
    for _ in range(4):
        spot = spot or room.in_the_open(tables.meeting_table(kit), 0.45, tries=40)
    rules.seats(room, spot, kit.pick((seating.office_chair, seating.dining_chair, seating.shell_chair)), 0.9)
    rules.topped(room, spot, ON_MEETING, 4)
    rules.board(room)
    if kit.chance(0.3):
        rules.topped(room, room.against_wall(fixtures.kitchen_run(kit, kit.uniform(1.2, 2.0), kit.chance(0.5))), ON_COUNTER, 3)
    elif kit.chance(0.2):
        room.against_wall(fixtures.reception(kit), front=0.3)
    if kit.chance(0.35):
        room.against_wall(seating.sofa(kit), tries=30, front=0.3)


def lecture_room(room: Room) -> None:
    rules.rows_of_seats(room)
    if room.kit.chance(0.4):
        rules.board(room)


ROOM_TYPES: dict[str, Callable[[Room], None]] = {
    "bedroom": bedroom, "living room": living_room, "kitchen": kitchen, "bathroom": bathroom,
    "office": office, "meeting room": meeting_room, "lecture room": lecture_room,
}  # fmt: skip

# What else stands along the walls of each type, with weights, until the floor is as full as was drawn.
ALONG_WALLS: dict[str, tuple] = {
    "bedroom": ((storage.bookshelf, 3), (seating.shell_chair, 2), (storage.storage_cabinet, 3), (storage.dresser, 1), (storage.cube_shelf, 1),
                (tables.desk, 4), (seating.armchair, 2), (seating.ottoman, 1), (storage.wardrobe, 2), (seating.dining_chair, 2),
                (storage.clothes_rail, 1.5), (appliances.exercise_machine, 0.7), (clutter.guitar, 0.5), (tables.console, 1),
                (storage.rack, 1), (seating.bench, 1), (beds.bed, 5), (tables.end_table, 1)),
    "living room": ((seating.sofa, 3), (seating.armchair, 4), (storage.bookshelf, 4), (storage.sideboard, 2),
                    (tables.desk, 2), (tables.end_table, 1), (appliances.piano, 0.6), (appliances.fireplace, 0.7),
                    (appliances.aquarium, 0.6), (seating.dining_chair, 3), (tables.dining_table, 2), (tables.coffee_table, 1), (clutter.guitar, 0.4),
                    (seating.ottoman, 1.5), (storage.rack, 0.7), (seating.bench, 1), (appliances.room_divider, 0.5)),
    "kitchen": ((storage.storage_cabinet, 3), (tables.dining_table, 2), (storage.tall_cabinet, 3), (seating.dining_chair, 2), (fixtures.refrigerator, 1),
                (tables.console, 1), (seating.bench, 2), (storage.rack, 2), (fixtures.stove, 1), (seating.stool, 2),
                (fixtures.washing_machine, 1), (seating.shell_chair, 2)),
    "bathroom": ((storage.storage_cabinet, 3), (fixtures.washing_machine, 2), (fixtures.laundry_basket, 2), (storage.rack, 0.7),
                 (seating.stool, 1), (fixtures.drying_rack, 0.7), (appliances.heater, 0.5)),
    "office": ((tables.desk, 6), (storage.file_cabinet, 2), (storage.bookshelf, 3), (storage.storage_cabinet, 3),
               (seating.armchair, 2), (seating.dining_chair, 5), (appliances.copier, 1), (storage.locker_wall, 1),
               (appliances.water_cooler, 1), (tables.dining_table, 2), (storage.rack, 1), (seating.office_chair, 4),
               (appliances.room_divider, 0.7), (seating.shell_chair, 1)),
    "meeting room": ((seating.dining_chair, 5), (seating.shell_chair, 5), (seating.office_chair, 3), (storage.sideboard, 3), (storage.bookshelf, 2),
                     (tables.dining_table, 3), (seating.sofa, 2), (appliances.water_cooler, 0.7), (storage.locker_wall, 1),
                     (appliances.cart, 1), (appliances.room_divider, 0.7), (appliances.easel_board, 1)),
    "lecture room": ((storage.locker_wall, 2), (storage.storage_cabinet, 2), (seating.shell_chair, 5), (tables.console, 2),
                     (tables.dining_table, 1), (appliances.cart, 1), (storage.bookshelf, 2), (appliances.piano, 0.5), (appliances.easel_board, 1)),
}  # fmt: skip
ON_FLOOR: dict[str, tuple] = {
    "bedroom": ((clutter.carton, 2), (clutter.bag, 1), (clutter.backpack, 2), (clutter.suitcase, 1), (clutter.shoes, 2),
                (clutter.folded_cloth, 2), (clutter.toy, 1), (clutter.ball, 0.5), (clutter.floor_lamp, 2), (clutter.plant, 1),
                (fixtures.laundry_basket, 1), (appliances.trash_can, 1), (storage.shoe_rack, 1), (appliances.coat_stand, 1),
                (appliances.ironing_board, 0.7), (appliances.fan, 0.7), (clutter.cushion, 1)),
    "living room": ((clutter.plant, 3), (clutter.floor_lamp, 3), (clutter.basket, 1), (clutter.book_stack, 1), (clutter.speaker, 1),
                    (clutter.toy, 1), (clutter.cushion, 1), (seating.ottoman, 1), (clutter.carton, 1), (clutter.ball, 0.5),
                    (appliances.bicycle, 0.5), (appliances.heater, 0.6), (appliances.coat_stand, 0.7), (clutter.shoes, 0.7)),
    "kitchen": ((appliances.trash_can, 3), (appliances.recycling_bins, 1), (clutter.carton, 2), (clutter.bag, 1),
                (clutter.bucket, 1), (clutter.broom, 1), (clutter.plant, 1), (appliances.ladder, 0.6), (seating.stool, 1)),
    "bathroom": ((appliances.trash_can, 3), (fixtures.laundry_basket, 2), (clutter.bucket, 1), (clutter.basket, 1),
                 (clutter.folded_cloth, 1), (clutter.broom, 0.5), (storage.shoe_rack, 0.3)),
    "office": ((appliances.trash_can, 4), (clutter.computer_tower, 3), (clutter.carton, 3), (clutter.backpack, 2), (clutter.bag, 1),
               (clutter.plant, 2), (appliances.recycling_bins, 1), (appliances.coat_stand, 1), (appliances.fan, 0.6),
               (clutter.paper_stack, 1), (appliances.storage_bins, 1), (appliances.bicycle, 0.4), (appliances.heater, 0.4)),
    "meeting room": ((appliances.trash_can, 3), (clutter.plant, 3), (clutter.bag, 1), (clutter.backpack, 2), (clutter.carton, 1),
                     (appliances.coat_stand, 1), (appliances.recycling_bins, 1), (clutter.floor_lamp, 1)),
    "lecture room": ((appliances.trash_can, 3), (clutter.backpack, 3), (clutter.bag, 1), (clutter.plant, 1), (clutter.carton, 1),
                     (appliances.ladder, 0.5), (appliances.storage_bins, 1), (clutter.vacuum_cleaner, 0.4)),
}  # fmt: skip
FULLNESS = {"lecture room": (0.3, 0.5), "bathroom": (0.25, 0.45)}  # share of the floor; else FULL
FULL = (0.28, 0.52)

# Each block of this many scans holds every type, in an order drawn anew for each block.
BLOCK: tuple[tuple[str, ...], ...] = (
    ("bedroom",), ("bedroom", "bathroom"), ("living room",), ("living room", "kitchen"), ("kitchen",), ("bathroom",),
    ("office",), ("meeting room",), ("lecture room",), ("living room", "bedroom", "bathroom"),
    ("living room", "kitchen", "bedroom", "bathroom"), ("office", "meeting room", "kitchen"),
)  # fmt: skip


def furnished_flat(kit: Kit, kinds: tuple[str, ...]) -> list[Room]:
    """One to four rooms of these types with everything in them but walls, floors and ceilings."""
    rooms = flat(kit, kinds)
    # Large flats are meshed more coarsely, so that they differ less in vertices.
    kit.step *= (0.88, 1.0, 1.1, 1.3)[int(np.searchsorted((8, 17, 28), sum(room.area for room in rooms)))]
    for room in rooms:
        furnish(room)
    return rooms


def furnish(room: Room) -> None:
    kit, bath = room.kit, room.kind == "bathroom"
    holes = windows(kit, room, kit.integer(0, 1) if bath else kit.integer(1, 2))
    rules.dress_windows(room, holes, 0.2 if bath or room.kind == "kitchen" else 0.55)
    if kit.chance(0.5):
        rules.rug(room, 1.0 if bath else 2.4)
    ROOM_TYPES[room.kind](room)
    _fill_up(room, ALONG_WALLS[room.kind], kit.uniform(*FULLNESS.get(room.kind, FULL)))
    rules.pictures(room, 1 if bath else 3)
    _other_wall_things(room)
    rules.small_things(room, ON_FLOOR[room.kind], 4 if bath else 9)
    if kit.chance(0.4):
        rules.ceiling_lamps(room)


def _other_wall_things(room: Room) -> None:
    kit = room.kit
    table = ((openings.wall_clock, 1), (openings.wall_shelf, 2), (openings.coat_hooks, 1), (rules.flat("mirror"), 1),
             (openings.fire_extinguisher, 0.5), (rules.flat("bulletin board"), 0.7))  # fmt: skip
    sizes = {openings.wall_clock: (0.3, 0.3, 1.8), openings.wall_shelf: (0.8, 0.25, 1.5), openings.coat_hooks: (1.0, 0.9, 1.35),
             openings.fire_extinguisher: (0.2, 0.5, 0.9)}  # fmt: skip
    for _ in range(kit.integer(0, 2)):
        make = rules.draw(kit, table)
        w, h, middle = sizes.get(make, (kit.uniform(0.4, 0.9), kit.uniform(0.5, 1.1), 1.5))
        if room.kind != "bathroom" or make not in (openings.wall_shelf, openings.coat_hooks):
            rules.hang(room, make, w, h, middle)


def _fill_up(room: Room, table: tuple, share: float) -> None:
    """Add furniture until it covers `share` of the floor, or nothing fits any more."""
    kit = room.kit
    for _ in range(22):
        if sum(4 * s.base.half_w * s.base.half_d for s in room.solid if s.z0 < 0.05) >= share * room.area:
            return
        make = rules.draw(kit, table)
        if make is tables.desk:
            rules.work_place(room, ON_DESK)
            continue
        if make is tables.dining_table:
            rules.dining_set(room, ON_MEETING if room.kind == "office" else ON_TABLE)
            continue
        group = make(kit)
        spot = room.against_wall(group, tries=15, corner=kit.chance(0.5), front=0.2)
        if spot is None and group.size[2] < 1.2:
            room.in_the_open(group, 0.12, tries=15, turn=kit.uniform(0, 2 * np.pi) if kit.chance(0.4) else None)
        else:
            rules.topped(room, spot, IN_BATH if room.kind == "bathroom" else ON_SHELF if group.size[2] > 1.2 else ON_CABINET, 2)


def _along_walls(room: Room, table: tuple, count: int) -> None:
    for _ in range(count):
        spot = room.against_wall(rules.draw(room.kit, table)(room.kit), corner=room.kit.chance(0.4), front=0.3)
        rules.topped(room, spot, ON_SHELF if spot and spot.group.size[2] > 1.2 else ON_CABINET, 2)


def _loose(room: Room, kinds: tuple) -> None:
    """Seats that stand anywhere, turned anyhow."""
    kit = room.kit
    room.in_the_open(kit.pick(kinds)(kit), 0.15, tries=30, turn=kit.uniform(0, 2 * np.pi))
