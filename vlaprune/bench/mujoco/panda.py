"""What robosuite's and LIBERO's environments of a Panda arm share: cameras and conventions."""

from __future__ import annotations

from vlaprune.benchmark import Interface

CAMERAS = {"primary": "agentview", "wrist": "robot0_eye_in_hand"}  # our name -> MuJoCo's
INTERFACE = Interface(
    rotation="axis_angle",
    gripper="close_positive",
    frame="delta",
    cameras=tuple(CAMERAS),
    state="eef_pos3_axisangle3_gripper2",
)
