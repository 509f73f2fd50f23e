"""Damaged weights: refused in one line or read as they were written; never wrong, run as code, or hung.

Weights that vlaprune-train wrote carry a checksum. Published checkpoints carry none: what their format can show is
found (a short file, a damaged header, tensors that are missing or too many), a flipped bit in a number is not.
Short in CI; `make torture` (TORTURE=long) tries 300.
"""

import os
import random

import pytest
import torch
from torch import nn

from vlaprune.nn.checkpoint import Checkpoint
from vlaprune.nn.load import read, save

COUNT = 300 if os.environ.get("TORTURE") == "long" else 60


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The bytes of a file of weights, its tensors and its card."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "policy.safetensors"
    save(path, nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)), {"model": "tiny", "steps": 5}, torch.float16)
    tensors, card = read(path)
    card.pop("sha256")
    return path.read_bytes(), tensors, card


def damaged(rng, whole):
    """What storage and transfers do: flipped bits, bytes lost, doubled or foreign, zeros, a file cut short."""
    at, size = rng.randrange(len(whole)), rng.choice([1, 2, 40, 300])
    kind = rng.randrange(6)
    if kind == 0:
        return whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]
    if kind == 1:
        return whole[:at]
    if kind == 2:
        return whole[:at] + whole[at + size :]
    if kind == 3:
        return whole[:at] + bytes(len(whole[at : at + size])) + whole[at + size :]
    if kind == 4:
        return whole[:at] + rng.randbytes(len(whole[at : at + size])) + whole[at + size :]
    return whole[:at] + whole[at : at + size] * 2 + whole[at + size :]


def same(tensors, others):
    """Whether two sets of tensors are equal to the bit."""
    return tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)


@pytest.mark.parametrize("number", range(COUNT))
def test_damaged_weights_are_never_taken_for_sound_ones(sound, tmp_path, number):
    whole, tensors, card = sound
    path = tmp_path / "policy.safetensors"
    path.write_bytes(damaged(random.Random(number), whole))
    try:
        found, said = read(path)
    except ValueError as error:
        assert "\n" not in str(error) and str(path) in str(error) and len(str(error)) < 600
    else:
        said.pop("sha256")
        assert same(found, tensors) and said == card


def test_every_flipped_bit_of_a_file_of_weights_is_noticed_or_changes_nothing(sound, tmp_path):
    whole, tensors, card = sound
    path = tmp_path / "policy.safetensors"
    for bit in range(0, 8 * len(whole), 7):
        path.write_bytes(whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :])
        try:
            found, said = read(path)
        except ValueError:
            continue
        said.pop("sha256")
        assert same(found, tensors) and said == card


@pytest.mark.parametrize("number", range(COUNT // 2))
def test_a_published_checkpoint_of_another_length_is_refused(sound, tmp_path, number):
    """The format states where each tensor lies: bytes lost or added are found without a checksum."""
    whole, tensors, _ = sound
    rng = random.Random(number)
    at, size = rng.randrange(len(whole)), rng.choice([1, 2, 40, 300])
    bad = whole[:at] + (whole[at + size :] if number % 2 else whole[at : at + size] + whole[at:])
    path = tmp_path / "model.safetensors"
    path.write_bytes(bad)
    with pytest.raises(ValueError, match=r"model\.safetensors") as error:
        checkpoint = Checkpoint(path)
        for name in tensors:
            checkpoint.tensor(name)
    assert "\n" not in str(error.value)
