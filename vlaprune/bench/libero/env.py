"""One LIBERO task, open: what `vlaprune.bench.libero.benchmark` gives to a run."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlaprune.bench.libero import expert
from vlaprune.bench.libero.protocol import Rules
from vlaprune.bench.mujoco.gl import starting
from vlaprune.bench.mujoco.panda import CAMERAS
from vlaprune.bench.mujoco.stress import Stress, background
from vlaprune.benchmark import Observation, Task, axis_angle, check_action
from vlaprune.errors import UserError

TRAIN_EPISODE = 1000  # first episode id that evaluation never uses
STAYS = 0.03  # most metres that things may move while one of our own initial states settles
SETTLE, NOTHING = 10, np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
PLACES = ("geom_xpos", "geom_xmat", "site_xpos", "site_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir")


@dataclass(frozen=True)
class EnvOptions:
    """How a world is drawn, placed and perturbed: `rules` are those of the protocol, the rest is as in `Libero`."""

    gl: str
    rules: Rules
    image: int
    fast: bool
    stress: str | None
    severity: int


class LiberoEnv:
    """The open environment of one LIBERO task; made by `Libero.open`.

    world  LIBERO's own environment; scripted experts read the simulator's state from it
    """

    def __init__(self, world: Any, task: Task, states: np.ndarray, options: EnvOptions) -> None:
        """Wraps `world`, whose initial states are `states` [50, n]."""
        import mujoco
        from robosuite.utils.observables import Observable

        self.world, self.task = world, task
        self._states, self._mujoco = states, mujoco
        self._model, self._data = world.sim.model._model, world.sim.data._data
        self._rules = options.rules
        self._numpy_states = [np.random.RandomState(options.rules.seed).get_state()]
        if options.fast:
            self._model.vis.quality.offsamples = 0
        with starting(options.gl):
            self._renderer = mujoco.Renderer(self._model, options.image, options.image)
        if options.fast:
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self._renderer.scene.flags[flag] = 0
        self._option = mujoco.MjvOption()
        self._option.geomgroup[0] = 0  # group 0 is collision geometry, group 1 what one should see
        fixtures = [fixture.root_body for fixture in world.fixtures_dict.values()]
        around = background(self._model, fixtures)
        self._stress = Stress(options.stress, options.severity, self._model, CAMERAS["primary"], around)
        self._episode, self._steps = 0, 0
        self._seen = mujoco.MjData(self._model)
        self._sites = self._model.site_rgba.copy()
        world.add_observable(Observable("seen", _sensor(self._sample), sampling_rate=world.control_freq))

    def reset(self, episode: int) -> None:
        """Sets official initial state `episode` (0 .. 49) or one of our own (from 1000), then runs ten idle steps."""
        if not (0 <= episode < len(self._states) or episode >= TRAIN_EPISODE):
            raise UserError(f"episode {episode}; LIBERO has 0..{len(self._states) - 1}, ours begin at {TRAIN_EPISODE}")
        self._episode = episode
        self._stress.prepare(episode)
        if episode < TRAIN_EPISODE:
            self._official(episode)
            self._settle()
        else:
            self._own(episode)

    def _official(self, episode: int) -> None:
        """Does LIBERO's reset number `episode` under the protocol's seed, then sets initial state `episode`."""
        if self._rules.anew:
            self._reset(np.random.RandomState(self._rules.seed + episode).get_state())
        else:
            while len(self._numpy_states) <= episode:
                self._numpy_states.append(self._reset(self._numpy_states[-1]))
            after = self._reset(self._numpy_states[episode])
            if len(self._numpy_states) == episode + 1:
                self._numpy_states.append(after)
        self.world.sim.set_state_from_flattened(self._states[episode])

    def _own(self, episode: int) -> None:
        """Draws an initial state by LIBERO's placement rules, with a generator seeded by the episode.

        The rules may place objects inside each other, which then fly apart: the draw is repeated until all stay.
        """
        seed = np.random.SeedSequence([zlib.crc32(self.task.name.encode()), episode]).generate_state(8)
        state = np.random.RandomState(seed).get_state()
        while True:
            state = self._reset(state)
            self.world.sim.forward()
            before = self._spots()
            self._settle()
            if np.abs(self._spots() - before).max() < STAYS:
                return

    def _spots(self) -> np.ndarray:
        """The positions of all objects on the table, [n, 2] in metres."""
        return np.array([self._data.xpos[self.world.obj_body_id[name]][:2] for name in self.world.objects_dict])

    def _settle(self) -> None:
        """Runs ten idle steps from the present state."""
        self._stress.start(self.world.robots[0], self._data, self._episode)
        self._data.qacc_warmstart[:] = 0  # else it would depend on where the placement rules had put objects
        self.world.sim.forward()
        self.world._post_process()
        self.world._update_observables(force=True)
        for _ in range(SETTLE):
            self.step(NOTHING)
        self._steps = 0

    def observe(self) -> Observation:
        """Renders each camera [h, w, 3] and reads the state [8] (metres, radians, metres) as robosuite samples them."""
        images, sites = {}, self._model.site_rgba.copy()
        self._model.site_rgba[:] = self._sites  # LIBERO recolours burners between sampling and now
        for number, (name, camera) in enumerate(CAMERAS.items()):
            self._renderer.update_scene(self._seen, camera, self._option)
            image = np.ascontiguousarray(self._renderer.render()[:, ::-1])
            images[name] = self._stress.picture(image, self._episode, self._steps, number)
        self._model.site_rgba[:] = sites
        return Observation(images, self._state(), self.task.instruction)

    def step(self, action: np.ndarray) -> bool:
        """Applies one [7] action; robosuite clips it to [-1, 1]. True while LIBERO's own goal predicate holds."""
        _, _, success, _ = self.world.step(check_action(action, 7))
        self._steps += 1
        return bool(success)

    def hand(self) -> np.ndarray:
        """The position of the gripper, [3] in metres."""
        return np.copy(self._data.site_xpos[self.world.robots[0].eef_site_id])

    def hint(self) -> np.ndarray:
        """Positions of the object to move and of its target: x and y from the hand in metres; [4] float32.

        Privileged: for training, never for a policy that acts.
        """
        hand = self.hand()[:2]
        spots = [place[:2] - hand for place in expert.places(self.world)]
        return np.concatenate(spots).astype(np.float32)

    def state_bits(self) -> bytes:
        """The bytes of everything that decides what the simulator does next, for tests of repeatability."""
        spec = int(self._mujoco.mjtState.mjSTATE_INTEGRATION)
        out = np.empty(self._mujoco.mj_stateSize(self._model, spec))
        self._mujoco.mj_getState(self._model, self._data, out, spec)
        return out.tobytes() + np.asarray(self._model.body_pos).tobytes()

    def close(self) -> None:
        """Frees the renderer and the simulator."""
        self._renderer.close()
        self.world.close()

    def _reset(self, state: Any) -> Any:
        """Does LIBERO's reset with numpy's global generator in `state`; returns the generator's state afterwards."""
        from robosuite.utils.errors import RandomizationError

        gripper = self.world.robots[0].gripper
        gripper.current_action = np.zeros(gripper.dof)  # robosuite would keep it from the episode before
        for fixture in self.world.fixtures_dict.values():
            # What lies on or in a fixture is placed relative to where the compiled model has the fixture. LIBERO
            # compiles it anew at each reset; here it would still be where the last reset moved it.
            body, xml = self.world.sim.model.body_name2id(fixture.root_body), fixture.get_obj()
            self._model.body_pos[body] = np.fromstring(xml.get("pos", "0 0 0"), sep=" ")
            self._model.body_quat[body] = np.fromstring(xml.get("quat", "1 0 0 0"), sep=" ")
        with numpy_state(state):
            while True:
                try:
                    self.world.reset()
                    return np.random.get_state()
                except RandomizationError:  # no room for an object; LIBERO draws again
                    continue

    def _sample(self, _: Any) -> np.ndarray:
        """Called by robosuite instead of rendering: remembers the scene, which is rendered only if observed."""
        for name in PLACES:
            getattr(self._seen, name)[:] = getattr(self._data, name)
        self._sites = self._model.site_rgba.copy()
        return np.zeros(1)

    def _state(self) -> np.ndarray:
        """Gripper position 3, axis-angle 3 and finger positions 2, as one [8] array."""
        now = {k: self.world._observables[f"robot0_{k}"].obs for k in ("eef_pos", "eef_quat", "gripper_qpos")}
        return np.concatenate([now["eef_pos"], axis_angle(now["eef_quat"]), now["gripper_qpos"]])


@contextmanager
def numpy_state(state: Any) -> Iterator[None]:
    """Puts numpy's global generator, which LIBERO draws from, into `state` inside the context."""
    before = np.random.get_state()
    np.random.set_state(state)
    try:
        yield
    finally:
        np.random.set_state(before)


def _sensor(function: Callable[[Any], np.ndarray]) -> Any:
    """Marks `function` as a sensor of robosuite."""
    from robosuite.utils.observables import sensor

    return sensor(modality="seen")(lambda cache: function(cache))
