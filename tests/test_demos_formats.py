"""LIBERO's HDF5 and OpenVLA's RLDS files give the arrays that our own demonstrations do; damaged ones are refused."""

import io
import json
import struct

import google_crc32c
import h5py
import numpy as np
import pytest
from PIL import Image

from vlaprune.control import Control, Controller, as_model_actions
from vlaprune.training import demos
from vlaprune.training.datasets.episode import moving
from vlaprune.training.datasets.load import files, load
from vlaprune.training.datasets.rlds import example, records

WORDS = "pick up the black bowl"


def episode(seed=0, steps=9, side=16):
    """Upright pictures [n, 2, h, w, 3], state, actions of an arm that moves at every step."""
    rng = np.random.default_rng(seed)
    images = np.repeat(np.repeat(rng.integers(0, 255, (steps, 2, 2, 2, 3), dtype=np.uint8), side // 2, 2), side // 2, 3)
    actions = np.concatenate((rng.uniform(0.1, 1, (steps, 6)), np.sign(rng.normal(size=(steps, 1)))), 1)
    return images, rng.normal(size=(steps, 8)).astype(np.float32), actions.astype(np.float32)


def write_hdf5(path, shown, instruction=WORDS):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        if instruction is not None:
            data.attrs["problem_info"] = json.dumps({"language_instruction": instruction})
        for i, (images, state, actions) in enumerate(shown):
            demo = data.create_group(f"demo_{i}")
            demo["actions"] = actions.astype(np.float64)
            demo["obs/agentview_rgb"], demo["obs/eye_in_hand_rgb"] = (images[:, c, ::-1, ::-1] for c in (0, 1))
            demo["obs/ee_states"], demo["obs/gripper_states"] = state[:, :6], state[:, 6:]


def varint(n):
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def message(features):
    """A tf.train.Example, by its definition."""
    entries = b""
    for name, values in features.items():
        if isinstance(values, list):
            value = field(1, b"".join(field(1, v) for v in values))
        elif values.dtype == np.float32:
            value = field(2, field(1, values.tobytes()))
        else:
            value = field(3, field(1, b"".join(varint(int(v)) for v in values)))
        entries += field(1, field(1, name.encode()) + field(2, value))
    return field(1, entries)


def masked(data):
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def png(image):
    packed = io.BytesIO()
    Image.fromarray(image).save(packed, "PNG")
    return packed.getvalue()


def jpeg(image):
    packed = io.BytesIO()
    Image.fromarray(image).save(packed, "JPEG", quality=95)
    return packed.getvalue()


def write_rlds(path, shown, pack=png, **other):
    path.parent.mkdir(parents=True, exist_ok=True)
    out = b""
    for images, state, actions in shown:
        record = message(
            {
                "steps/observation/image": [pack(i) for i in images[:, 0]],
                "steps/observation/wrist_image": [pack(i) for i in images[:, 1]],
                "steps/observation/state": state.ravel(),
                "steps/action": actions.ravel(),
                "steps/language_instruction": [WORDS.encode()] * len(state),
                "steps/is_first": np.eye(1, len(state), dtype=np.int64)[0],
                **other,
            }
        )
        size = struct.pack("<Q", len(record))
        out += size + masked(size) + record + masked(record)
    path.write_bytes(out)


HDF5, RLDS = "pick_up_the_black_bowl_demo.hdf5", "1.0.0/libero_spatial-train.tfrecord-00000-of-00001"
WRITERS = [(HDF5, write_hdf5), (RLDS, write_rlds)]


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_what_was_written_comes_back_upright_and_in_whole_chunks(tmp_path, name, write):
    shown = [episode(0), episode(1, 7)]
    write(tmp_path / name, shown)
    found = load(tmp_path, 4)
    assert found["task"].tolist() == [WORDS] * 10 and found["episode"].tolist() == [0] * 6 + [1] * 4
    for i, (images, state, actions) in enumerate(shown):
        own = found["episode"] == i
        count = own.sum()
        assert np.array_equal(found["images"][own], images[:count]) and found["images"].dtype == np.uint8
        assert np.array_equal(found["state"][own], state[:count])
        for t, label in enumerate(found["labels"][own]):
            assert np.array_equal(label, actions[t : t + 4])
    assert np.isnan(found["hints"]).all()
    assert np.array_equal(load(tmp_path, 4, every=3)["state"], found["state"][[0, 3, 6, 9]])


def test_both_formats_and_our_own_have_the_same_arrays(tmp_path):
    write_hdf5(tmp_path / "a" / HDF5, [episode()])
    write_rlds(tmp_path / "b" / RLDS, [episode()])
    one, two = load(tmp_path / "a", 8), load(tmp_path / "b", 8)
    assert all(np.array_equal(one[key], two[key], equal_nan=key == "hints") for key in one)
    assert set(one) == set(two) == {*demos.FRAMES, *demos.FACTS}
    with pytest.raises(ValueError, match=r"has files \['\*\.hdf5', '\*\.tfrecord\*'\].*it needs one kind"):
        load(tmp_path, 8)


def test_a_jpeg_comes_back_as_near_as_jpeg_is(tmp_path):
    shown = episode()
    write_rlds(tmp_path / RLDS, [shown], jpeg)
    found = load(tmp_path, 8)["images"]
    assert np.abs(found.astype(int) - shown[0][: len(found)]).mean() < 8


def test_no_ops_are_dropped_before_chunks_are_cut(tmp_path):
    images, state, actions = episode()
    actions[[0, 3, 4], :6] = 0  # the first and two in the midst stand still
    actions[:, 6] = [1, 1, 1, -1, -1, -1, -1, 1, 1]  # but at step 3 the gripper changes
    assert moving(actions).tolist() == [1, 2, 3, 5, 6, 7, 8]
    write_hdf5(tmp_path / HDF5, [(images, state, actions)])
    found = load(tmp_path, 6)
    assert np.array_equal(found["labels"][0], actions[[1, 2, 3, 5, 6, 7]])
    assert np.array_equal(found["images"], images[[1, 2]]) and np.array_equal(found["state"], state[[1, 2]])


@pytest.mark.parametrize("name", [HDF5, f"KITCHEN_SCENE3_{HDF5}"])
def test_without_a_description_the_name_of_the_file_is_the_instruction(tmp_path, name):
    write_hdf5(tmp_path / name, [episode()], None)
    assert set(load(tmp_path, 8)["task"]) == {WORDS}


def test_numbers_of_any_kind_are_read():
    numbers = np.array([0, 1, 127, 128, 2**40, -1 & (2**64 - 1)], np.uint64)
    record = message({"n": numbers, "f": np.float32([1.5, -2]), "b": [b"", b"x" * 300]})
    found = example(record)
    assert found["n"].tolist() == [0, 1, 127, 128, 2**40, -1] and found["f"].tolist() == [1.5, -2]
    assert found["b"] == [b"", b"x" * 300]


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"\0" * 100)


@pytest.mark.parametrize(
    ("name", "write", "damage", "match"),
    [
        (HDF5, write_hdf5, lambda p: p.write_bytes(p.read_bytes()[:2000]), "is no whole file of LIBERO demonstrations"),
        (HDF5, write_hdf5, empty, "is no whole file of LIBERO demonstrations"),
        (RLDS, write_rlds, cut, "is damaged, or no TFRecord file"),
        (RLDS, write_rlds, flip, "is damaged, or no TFRecord file"),
        (RLDS, write_rlds, empty, "is damaged, or no TFRecord file"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, name, write, damage, match):
    write(tmp_path / name, [episode()])
    damage(tmp_path / name)
    with pytest.raises(ValueError, match=match) as error:
        load(tmp_path, 4)
    assert "\n" not in str(error.value) and name.split("/")[-1] in str(error.value)


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (lambda p: write_rlds(p / RLDS, [episode()], **{"steps/language_instruction": []}), "is no episode of LIBERO"),
        (lambda p: write_rlds(p / RLDS, [episode()], **{"steps/action": np.zeros(8, np.float32)}), "is no episode of"),
        (lambda p: write_rlds(p / RLDS, [episode()], lambda image: b"?"), "has a broken picture"),
        (lambda p: write_rlds(p / RLDS, [episode()], lambda image: jpeg(image)[:200]), "has a broken picture"),
        (
            lambda p: write_hdf5(p / HDF5, [(*episode()[:2], episode()[2][:, :6])]),
            r"actions \(9, 6\); expected",
        ),
        (lambda p: write_hdf5(p / HDF5, [(*episode()[:2], episode()[2] * np.nan)]), "numbers that are not finite"),
        (lambda p: write_hdf5(p / HDF5, [episode(steps=3)]), "no episode of 4 steps that move"),
        (lambda p: None, "has files none of"),
    ],
)
def test_what_is_no_demonstration_is_refused_in_one_line(tmp_path, write, match):
    write(tmp_path)
    with pytest.raises(ValueError, match=match) as error:
        load(tmp_path, 4)
    assert "\n" not in str(error.value)


def test_an_empty_file_has_no_records_and_a_folder_without_any_is_ours(tmp_path):
    (tmp_path / "x.tfrecord").write_bytes(b"")
    assert not list(records(tmp_path / "x.tfrecord")) and not files(tmp_path / "nosuch")


def test_what_is_taught_is_what_the_control_turns_back():
    actions = episode()[2]
    labels = as_model_actions(actions, "close_positive", "zero_one")
    assert set(labels[:, -1]) == {0.0, 1.0}
    assert np.array_equal(Controller(Control(gripper="sign")).actions(labels), actions)
    assert as_model_actions(actions, "close_positive", "close_positive") is actions
    with pytest.raises(ValueError, match="gripper close_delta cannot teach a model with gripper zero_one"):
        as_model_actions(actions, "close_delta", "zero_one")
