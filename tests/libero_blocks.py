"""A world of blocks for LIBERO: assets of our own, from boxes and plain colours, that its environments load as theirs.

Enough for five tasks, one of each suite. They have the joints, regions and rough sizes that LIBERO's problem files and
initial states ask for, and nothing else of its assets. Not for scores.
"""

import math
from pathlib import Path

from PIL import Image

TASKS = {
    "libero_object": 0,
    "libero_spatial": 2,
    "libero_goal": 8,
    "libero_10": 7,
    "libero_90": 46,
}
TEXTURES = ("light-gray-floor-tile", "light-gray-plaster", "seamless_wood_planks_floor")
FREE = {  # name -> folder, half sizes in metres, colour; they stand around their own origin, save the bottle
    "alphabet_soup": ("stable_hope_objects", (0.033, 0.038, 0.033), ".8 .2 .2 1"),
    "tomato_sauce": ("stable_hope_objects", (0.033, 0.038, 0.033), ".7 .3 .1 1"),
    "salad_dressing": ("stable_hope_objects", (0.024, 0.073, 0.02), ".2 .5 .2 1"),
    "ketchup": ("stable_hope_objects", (0.024, 0.073, 0.02), ".9 .1 .1 1"),
    "milk": ("stable_hope_objects", (0.033, 0.07, 0.033), ".9 .9 .9 1"),
    "cream_cheese": ("stable_hope_objects", (0.02, 0.04, 0.009), ".5 .6 .8 1"),
    "butter": ("stable_hope_objects", (0.02, 0.038, 0.009), ".9 .8 .3 1"),
    "cookies": ("stable_hope_objects", (0.04, 0.055, 0.009), ".7 .2 .1 1"),
    "glazed_rim_porcelain_ramekin": ("stable_scanned_objects", (0.03, 0.03, 0.02), ".8 .8 .9 1"),
    "wine_bottle": ("turbosquid_objects", (0.03, 0.03, 0.1), ".1 .3 .1 1"),
}
EDGES = """
      <site name="bottom_site" pos="0 0 {low}" size=".005" rgba="0 0 0 0"/>
      <site name="top_site" pos="0 0 {high}" size=".005" rgba="0 0 0 0"/>
      <site name="horizontal_radius_site" pos="{wide} {wide} 0" size=".005" rgba="0 0 0 0"/>"""


def block(half, at=(0, 0, 0), colour=".6 .5 .4 1", turn=0):
    """A box to touch and the same box to see."""
    place = f'type="box" size="{numbers(half)}" pos="{numbers(at)}" euler="0 0 {turn}"'
    return (
        f'<geom {place} group="0" density="100" friction=".95 .3 .1" rgba="0 0 0 0"/>'
        f'<geom {place} group="1" contype="0" conaffinity="0" mass="0" rgba="{colour}"/>'
    )


def region(name, half, at):
    """A place that a problem file names; LIBERO reads its quaternion."""
    place = f'type="box" size="{numbers(half)}" pos="{numbers(at)}" quat="1 0 0 0"'
    return f'<site name="{name}" {place} group="0" rgba="0 0 0 0"/>'


def numbers(values):
    return " ".join(f"{v:g}" for v in values)


def thing(name, inside, low=-0.02, high=0.02, wide=0.02):
    """The file of an object, as robosuite reads it."""
    edges = EDGES.format(low=low, high=high, wide=wide)
    return (
        f'<mujoco model="{name}">\n  <compiler angle="radian"/>\n  <asset/>\n  <worldbody>\n    <body>\n'
        f'      <body name="object">{inside}</body>{edges}\n    </body>\n  </worldbody>\n</mujoco>\n'
    )


def ring(radius, half, height, colour, count=12):
    """Walls around a bowl."""
    turns = [2 * math.pi * i / count for i in range(count)]
    return "".join(block(half, (radius * math.cos(t), radius * math.sin(t), height), colour, t) for t in turns)


def drawers():
    """Three on slides, with the regions that problem files name."""
    levels = {"top": 0.186, "middle": 0.117, "bottom": 0.047}
    boxes = "".join(
        f'<body name="cabinet_{name}"><joint name="{name}_level" type="slide" axis="0 1 0" range="-.16 .01" '
        f'limited="true" damping="5"/>{region(name + "_region", (0.1, 0.07, 0.03), (0, 0.01, z))}'
        f"{block((0.11, 0.005, 0.026), (0, -0.09, z), '.4 .3 .2 1')}{block((0.1, 0.08, 0.004), (0, 0, z - 0.022))}"
        "</body>"
        for name, z in levels.items()
    )
    walls = "".join(block((0.005, 0.1, 0.11), (x, 0.01, 0.11), ".3 .2 .1 1") for x in (-0.125, 0.125))
    top = region("top_side", (0.12, 0.09, 0.002), (0, 0.01, 0.222)) + block((0.13, 0.1, 0.003), (0, 0.01, 0.218))
    return thing("wooden_cabinet", f'<body name="base">{top}{walls}{boxes}</body>', -0.045, 0.045, 0.045)


def stove():
    """A plate with a burner that glows, and a button that turns."""
    burner = (
        f'<body name="burner" pos=".15 0 0">{region("cook_region", (0.075, 0.075, 0.003), (0, 0, 0))}'
        f"{block((0.09, 0.09, 0.01), (0, 0, 0), '.5 .5 .5 1')}"
        '<site name="burner" pos="0 0 .022" size=".06 .0005" rgba=".9 .05 .05 1" type="cylinder"/></body>'
    )
    button = (
        '<body name="button"><joint name="button" type="hinge" axis="0 0 1" range="-.1 2.1" limited="true" '
        'damping=".1"/>'
        f"{region('knob', (0.02, 0.02, 0.01), (0, 0, 0))}{block((0.02, 0.02, 0.02), (0, 0, 0), '.2 .2 .2 1')}</body>"
    )
    return thing("flat_stove", f'<body name="base">{burner}{button}</body>', -0.045, 0.045, 0.045)


def scene(kind):
    """Floor, wall, lamp, cameras, and a table of the kind that the arena's code looks for."""
    floor = '<geom name="floor" type="plane" size="3 3 .125" material="floorplane" group="1" condim="3"/>'
    table = ""
    if kind == "tabletop":
        legs = "".join(
            f'<geom name="table_leg{i}_visual" type="cylinder" size=".05 .1" group="1" contype="0" conaffinity="0"/>'
            for i in (1, 2, 3, 4)
        )
        table = (
            '<body name="table" pos="0 0 .4"><geom name="table_collision" type="box" size=".4 .4 .4" group="0"/>'
            '<geom name="table_visual" type="box" size=".4 .4 .4" group="1" contype="0" conaffinity="0" '
            'rgba=".8 .7 .6 1"/>'
            f'<site name="table_top" pos="0 0 .4" size=".001" rgba="0 0 0 0"/>{legs}</body>'
        )
    else:
        floor = f'<body name="floor">{floor}</body>'
    if kind == "living_room_tabletop":
        table = f'<body name="living_room_table">{block((0.35, 0.6, 0.205), (0, 0, 0.205), ".6 .4 .2 1")}</body>'
    wall = (
        '<geom type="box" size="3 .01 1.5" pos="-2 0 1.5" euler="0 0 1.5708" group="1" contype="0" conaffinity="0" '
        'material="walls"/>'
    )
    lamps = "".join(
        f'<light name="light{i}" pos="{at} 4" dir="0 -.15 -1" diffuse=".8 .8 .8" castshadow="false"/>'
        for i, at in ((1, "1 1"), (2, "-3 -3"))
    )
    cameras = "".join(
        f'<camera name="{name}" mode="fixed" pos=".5 0 1.35" quat=".653 .271 .271 .653"/>'
        for name in ("frontview", "birdview", "agentview", "sideview")
    )
    assets = (
        '<texture type="skybox" builtin="gradient" rgb1=".9 .9 1" rgb2=".2 .3 .4" width="64" height="64"/>'
        '<texture name="texplane" type="2d" file="../textures/light-gray-floor-tile.png"/>'
        '<texture name="tex-wall" type="2d" file="../textures/light-gray-plaster.png"/>'
        '<material name="floorplane" texture="texplane" texrepeat="3 3" texuniform="true"/>'
        '<material name="walls" texture="tex-wall"/>'
    )
    return (
        f'<mujoco model="blocks">\n  <compiler angle="radian"/>\n  <asset>{assets}</asset>\n'
        f"  <worldbody>{floor}{wall}{table}{lamps}{cameras}</worldbody>\n</mujoco>\n"
    )


def bowls():
    """What is round: a bowl, and a plate to put it on."""
    bowl = ring(0.046, (0.002, 0.012, 0.02), 0.026, ".1 .1 .1 1") + block((0.035, 0.035, 0.004), (0, 0, 0.006))
    plate = ring(0.055, (0.012, 0.014, 0.003), 0.006, ".9 .9 .9 1") + block((0.045, 0.045, 0.003), (0, 0, 0.004))
    return {"akita_black_bowl": bowl, "plate": plate}


def basket():
    """Four walls, a floor, and the region inside."""
    sides = [((0.007, 0.072, 0.064), (x, 0, 0.077)) for x in (-0.073, 0.073)]
    sides += [((0.072, 0.007, 0.064), (0, y, 0.077)) for y in (-0.073, 0.073)]
    inside = region("contain_region", (0.061, 0.061, 0.07), (0, 0, 0.072)) + block((0.07, 0.07, 0.008), (0, 0, 0.013))
    return thing("basket", inside + "".join(block(*side) for side in sides))


def rack():
    """A post with a place for a bottle."""
    top = region("top_region", (0.1, 0.02, 0.003), (0, -0.08, 0.217))
    return thing("wine_rack", top + block((0.1, 0.02, 0.1), (0, 0, 0.1)))


def write(folder):
    """Puts the assets into `folder`, in the places where LIBERO looks; returns it as text, for `bench.assets`."""
    files = {
        "stable_scanned_objects/basket/basket": basket(),
        "turbosquid_objects/wine_rack/wine_rack": rack(),
        "articulated_objects/wooden_cabinet": drawers(),
        "articulated_objects/flat_stove": stove(),
    }
    files |= {f"stable_scanned_objects/{name}/{name}": thing(name, body) for name, body in bowls().items()}
    files |= {
        f"{place}/{name}/{name}": thing(name, block(half, (0, 0, (name == "wine_bottle") * half[2]), c))
        for name, (place, half, c) in FREE.items()
    }
    files |= {f"scenes/libero_{kind}_base_style": scene(kind) for kind in ("floor", "tabletop", "living_room_tabletop")}
    for name, text in files.items():
        path = Path(folder, f"{name}.xml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (Path(folder) / "textures").mkdir(exist_ok=True)
    for shade, name in zip((200, 230, 170), TEXTURES, strict=True):
        Image.new("RGB", (16, 16), (shade,) * 3).save(Path(folder, "textures", f"{name}.png"))
    return str(folder)
