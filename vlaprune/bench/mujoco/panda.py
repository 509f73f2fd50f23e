"""Cameras and conventions shared by robosuite's and LIBERO's environments of a Panda arm."""

from __future__ import annotations

from vlaprune.benchmark import Interface

CAMERAS = {"primary": "agentview", "wrist": "robot0_eye_in_hand"}  # our name of a camera -> MuJoCo's
INTERFACE = Interface(
    rotation="axis_angle",
    gripper="close_positive",
    frame="delta",
    cameras=tuple(CAMERAS),
    state="eef_pos3_axisangle3_gripper2",
)
