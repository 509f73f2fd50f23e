"""OpenVLA's regenerated LIBERO data in RLDS form, read without TensorFlow.

An episode is one tf.train.Example, a record of a TFRecord file. Framing: length (8 bytes, little-endian), its masked
CRC-32C, the record, its masked CRC-32C. Pictures are turned and no-ops dropped already. Sources: tensorflow's
record_writer.h, example.proto and feature.proto.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from vlaprune.errors import UserError, install_command
from vlaprune.training.datasets.episode import ACTION, STATE, Episode

CAMERAS = ("steps/observation/image", "steps/observation/wrist_image")
Feature = list[bytes] | np.ndarray


def episodes(path: Path) -> Iterator[Episode]:
    """Every episode of a file, in its order. UserError for a file that is damaged or of another kind."""
    for number, record in enumerate(records(path)):
        source = f"{path}: record {number}"
        try:
            said = example(record)
            words = said["steps/language_instruction"][0].decode()
            state = np.reshape(said["steps/observation/state"], (-1, STATE))
            actions = np.reshape(said["steps/action"], (-1, ACTION))
            pictures = [list(said[camera]) for camera in CAMERAS]
        except (KeyError, IndexError, ValueError, AttributeError, struct.error) as error:
            raise UserError(f"{source} is no episode of LIBERO in RLDS form ({error}); download it again") from None
        yield Episode(words, state, actions, _looker(pictures, source), source)


def records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file. UserError if one is cut off or its checksum is wrong."""
    try:
        from google_crc32c import value as crc
    except ImportError:
        raise UserError(f"{path} needs google-crc32c; {install_command('train')}") from None

    def masked(data: bytes) -> int:
        plain = crc(data)
        return ((plain >> 15 | plain << 17) + 0xA282EAD8) & 0xFFFFFFFF

    with open(path, "rb") as file:
        while head := file.read(12):
            whole = len(head) == 12 and masked(head[:8]) == struct.unpack("<I", head[8:])[0]
            data = file.read(struct.unpack("<Q", head[:8])[0]) if whole else b""
            tail = file.read(4) if whole else b""
            if not whole or len(tail) < 4 or masked(data) != struct.unpack("<I", tail)[0]:
                raise UserError(f"{path} is damaged, or no TFRecord file; download it again")
            yield data


def example(record: bytes) -> dict[str, Feature]:
    """The features of a tf.train.Example by name: lists of bytes, or arrays of float32 or int64 numbers."""
    out: dict[str, Feature] = {}
    for _, features in _fields(record):
        for _, entry in _fields(features):
            pair = dict(_fields(entry))
            ((kind, values),) = _fields(pair[2]) if pair[2] else ((1, b""),)
            out[pair[1].decode()] = _values(kind, [v for _, v in _fields(values)])
    return out


def _values(kind: int, parts: Sequence[bytes]) -> Feature:
    """The values of a bytes_list (1), a float_list (2) or an int64_list (3), packed or not."""
    if kind == 1:
        return list(parts)
    whole = b"".join(parts)
    if kind == 2:
        return np.frombuffer(whole, "<f4")
    numbers, at = [], 0
    while at < len(whole):
        number, at = _varint(whole, at)
        numbers.append(number)
    return np.array(numbers, np.uint64).astype(np.int64)


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The numbers and contents of a protobuf message's fields; numeric contents stay encoded bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind, start = key & 7, at
        if kind == 0:
            _, end = _varint(message, at)
        elif kind == 2:
            size, start = _varint(message, at)
            end = start + size
        else:
            end = at + {1: 8, 5: 4}[kind]
        if end > len(message):
            raise UserError("a field is cut off")
        yield key >> 3, message[start:end]
        at = end


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        number |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return number, at


def _looker(cameras: Sequence[Sequence[bytes]], source: str) -> Callable[[np.ndarray], np.ndarray]:
    def read_images(steps: np.ndarray) -> np.ndarray:
        try:
            return np.stack([np.stack([_picture(camera[s]) for camera in cameras]) for s in steps])
        except (OSError, ValueError, IndexError) as error:
            raise UserError(f"{source} has a broken picture ({error}); download it again") from None

    return read_images


def _picture(packed: bytes) -> np.ndarray:
    """[h, w, 3] uint8 of a JPEG, as TensorFlow decodes it, or of a PNG."""
    import simplejpeg
    from PIL import Image

    if packed[:2] == b"\xff\xd8":
        return simplejpeg.decode_jpeg(packed, fastdct=True, fastupsample=False)
    return np.asarray(Image.open(io.BytesIO(packed)).convert("RGB"))
