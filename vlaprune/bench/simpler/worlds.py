"""One SIMPLER task, open in a simulator: ManiSkill2_real2sim, which the papers used, or mani-skill 3.

Both are imported here alone and only when a world is made. They look through one camera, "primary", and add the state
that SimplerEnv does not show: hand position 3, axis-angle 3 and finger positions 2, in the robot's base frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlaprune.bench.simpler.grid import GOOGLE, WIDOWX, Start
from vlaprune.benchmark import Observation, check_action

SEED = 2022  # seed of ManiSkill2's generators in a new environment; mani-skill 3 gets the same


class ManiSkill2:
    """A new environment for every episode, as in SIMPLER's own evaluation, so that no episode depends on another.

    The renderer is kept, because its compiled shaders are lost with the last environment: half a minute on a CPU.
    """

    def __init__(self, starts: Sequence[Start], limit: int, traced: bool, assets: Path) -> None:
        """Starts the renderer; `traced` is ray tracing where a start asks for it."""
        import gymnasium
        import mani_skill2_real2sim.envs  # noqa: F401  (registers the environments)
        import sapien.core

        self._starts, self._limit, self._traced, self._assets = starts, limit, traced, assets
        self._gym, self._renderer = gymnasium, sapien.core.SapienRenderer()
        self._env: Any = None

    def reset(self, episode: int) -> None:
        """Builds the environment of `episode` and puts robot and objects where it says."""
        self.close()
        start = self._starts[episode]
        robot = WIDOWX if start.robot.startswith("widowx") else GOOGLE
        build: dict[str, Any] = {k: v for k, v in start.build.items() if self._traced or k != "shader_dir"}
        if start.overlay is not None:
            build["rgb_overlay_path"] = str(self._assets / "real_inpainting" / start.overlay)
        self._env = self._gym.make(
            start.env,
            obs_mode="rgbd",
            robot=start.robot,
            sim_freq=robot.physics_hz,
            control_mode=robot.control,
            control_freq=robot.hz,
            max_episode_steps=self._limit,
            scene_name=start.scene,
            camera_cfgs={"add_segmentation": True},
            rgb_overlay_cameras=[robot.camera],
            **build,
        )
        thing = {"episode_id": start.thing} if isinstance(start.thing, int) else {"init_xy": np.array(start.thing)}
        base = {"init_xy": np.array(start.base), "init_rot_quat": np.array(start.quat)}
        self._seen, _ = self._env.reset(options={"robot_init_options": base, "obj_init_options": thing})
        self._camera = robot.camera

    def observe(self) -> Observation:
        """The picture of the last step (SIMPLER renders at every step), the state [8] and the present instruction."""
        world = self._env.unwrapped
        hand = world.agent.robot.pose.inv() * world.tcp.pose
        joints = [joint.name for joint in world.agent.robot.get_active_joints()]
        state = _state(hand.p, hand.q, joints, world.agent.robot.get_qpos())
        return Observation(
            {"primary": self._seen["image"][self._camera]["rgb"]}, state, world.get_language_instruction()
        )

    def step(self, action: np.ndarray) -> bool:
        """Applies one [7] action; True while SIMPLER judges it a success."""
        self._seen, _, done, _, _ = self._env.step(check_action(action, 7))
        return bool(done)

    def state_bits(self) -> bytes:
        """The bytes of everything that decides what the simulator does next, for tests of repeatability."""
        return np.asarray(self._env.unwrapped.get_state()).tobytes()

    def close(self) -> None:
        """Frees the environment, not the renderer."""
        if self._env is not None:
            self._env.close()
        self._env = None


class ManiSkill3:
    """One environment for a task, whose scene is built anew for each episode: then no episode depends on another.

    Otherwise the sink of the eggplant's scene moves slightly at its first reset. Never two tasks in one process: the
    digital twins keep lists on their class (mani-skill 3.0.1) and change each other's.
    """

    def __init__(self, starts: Sequence[Start], limit: int) -> None:
        """Builds the environment of a WidowX task."""
        import gymnasium
        import mani_skill.envs  # noqa: F401  (registers the environments)
        from mani_skill.utils.common import to_tensor

        self._tensor, self._starts = to_tensor, starts
        self._env: Any = gymnasium.make(
            starts[0].env.replace("-v0", "-v1"),
            obs_mode="rgb+segmentation",
            num_envs=1,
            sim_backend="cpu",
            max_episode_steps=limit,
        )

    def reset(self, episode: int) -> None:
        """Puts the objects into arrangement `episode`."""
        number = self._tensor(np.array([self._starts[episode].thing]))
        self._seen, _ = self._env.reset(seed=SEED, options={"episode_id": number, "reconfigure": True})

    def observe(self) -> Observation:
        """The picture of the last step, the state [8] and the instruction."""
        world, robot = self._env.unwrapped, self._env.unwrapped.agent.robot
        hand = robot.pose.inv() * robot.links_map["ee_gripper_link"].pose
        joints = [joint.name for joint in robot.active_joints]
        state = _state(hand.p[0].numpy(), hand.q[0].numpy(), joints, robot.qpos[0].numpy())
        picture = self._seen["sensor_data"][WIDOWX.camera]["rgb"][0].numpy()
        return Observation({"primary": picture}, state, world.get_language_instruction()[0])

    def step(self, action: np.ndarray) -> bool:
        """Applies one [7] action; True while the task judges it a success."""
        self._seen, _, _, _, said = self._env.step(check_action(action, 7))
        return bool(said["success"])

    def state_bits(self) -> bytes:
        """The bytes of everything that decides what the simulator does next, for tests of repeatability."""
        return np.asarray(self._env.unwrapped.get_state()).tobytes()

    def close(self) -> None:
        """Frees the environment."""
        self._env.close()


def _state(place: np.ndarray, quat: np.ndarray, joints: Sequence[str], angles: np.ndarray) -> np.ndarray:
    """[8] of a hand's position, its quaternion (w first) and the joint positions; the angle is in [0, pi]."""
    quat = np.asarray(quat if quat[0] >= 0 else -quat, np.float64)
    sine = np.linalg.norm(quat[1:])
    turn = np.zeros(3) if sine < 1e-9 else quat[1:] / sine * 2.0 * np.arctan2(sine, quat[0])
    fingers = [angle for name, angle in zip(joints, angles, strict=True) if "finger" in name]
    return np.concatenate([place, turn, fingers]).astype(np.float64)
