"""Whether simulators can draw, in the interpreter they run in: EGL and OSMesa by MuJoCo, Vulkan by its loader."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from glob import glob
from pathlib import Path

from vlaprune.benchmark import Finding
from vlaprune.doctor.checks.probe import ask
from vlaprune.errors import UserError

ABOUT = {"egl": "EGL", "osmesa": "OSMesa", "vulkan": "Vulkan"}
ICDS = ("/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/usr/share/vulkan/icd.d")
DRAW = """
import mujoco
context = mujoco.GLContext(64, 64)
context.make_current()
from OpenGL import GL
print(GL.glGetString(GL.GL_RENDERER).decode() + ", " + GL.glGetString(GL.GL_VERSION).decode())
"""
DEVICES = """
import ctypes, struct
vk = ctypes.CDLL("libvulkan.so.1")
class Instance(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("next", ctypes.c_void_p), ("flags", ctypes.c_uint), ("app", ctypes.c_void_p),
                ("layers", ctypes.c_uint), ("names", ctypes.c_void_p),
                ("extensions", ctypes.c_uint), ("extension", ctypes.c_void_p)]
instance, count = ctypes.c_void_p(), ctypes.c_uint()
code = vk.vkCreateInstance(ctypes.byref(Instance(type=1)), None, ctypes.byref(instance))
if code:
    raise SystemExit(f"no Vulkan driver (vkCreateInstance gives {code})")
vk.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
devices = (ctypes.c_void_p * max(1, count.value))()
vk.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), devices)
found = []
for device in list(devices)[:count.value]:
    device, room, n = ctypes.c_void_p(device), ctypes.create_string_buffer(8192), ctypes.c_uint()
    vk.vkGetPhysicalDeviceProperties(device, room)
    driver = struct.unpack_from("I", room, 4)[0]
    name = room.raw[20:276].split(b"\\0")[0].decode()
    vk.vkEnumerateDeviceExtensionProperties(device, None, ctypes.byref(n), None)
    exts = ctypes.create_string_buffer(260 * max(1, n.value))
    vk.vkEnumerateDeviceExtensionProperties(device, None, ctypes.byref(n), exts)
    names = {exts.raw[260 * i:260 * i + 256].split(b"\\0")[0].decode() for i in range(n.value)}
    old = "" if "VK_KHR_external_semaphore_fd" in names else " without VK_KHR_external_semaphore_fd"
    found.append(f"{name} driver {driver >> 22}.{driver >> 12 & 1023}.{driver & 4095}{old}")
if not found:
    raise SystemExit("a Vulkan driver, but no device")
print("; ".join(found))
"""


def egl(python: str = sys.executable) -> Finding:
    """Whether MuJoCo renders off screen through EGL: on a GPU, or in software by Mesa."""
    return _mujoco("egl", python, "apt-get install libegl1 libgl1 libgl1-mesa-dri")


def osmesa(python: str = sys.executable) -> Finding:
    """Whether MuJoCo renders in software (OSMesa), without a display driver."""
    return _mujoco("osmesa", python, "apt-get install libosmesa6")


def vulkan(python: str = sys.executable) -> Finding:
    """Whether there is a Vulkan device for SAPIEN.

    SAPIEN 2.2.2 (SIMPLER) needs VK_KHR_external_semaphore_fd: in software, Mesa 26.
    """
    known = f"; {drivers()}" if python == sys.executable else ""  # another interpreter may use other drivers
    try:
        said = ask(DEVICES, python) + known
    except UserError as error:
        remedy = "install libvulkan1 and mesa-vulkan-drivers (in software: lavapipe of Mesa 26)"
        return Finding("Vulkan", f"{error}{known}; {remedy}", ok=False)
    if "without VK_KHR_external_semaphore_fd" in said:
        remedy = "SAPIEN 3 takes it, SAPIEN 2.2.2 does not; in software, use lavapipe of Mesa 26"
        return Finding("Vulkan", f"{said}; {remedy}", ok=False)
    return Finding("Vulkan", said)


def drivers() -> str:
    """The driver files that the Vulkan loader reads, and those that name a missing library."""
    told = os.environ.get("VK_DRIVER_FILES") or os.environ.get("VK_ICD_FILENAMES")
    paths = told.split(":") if told else sorted(p for folder in ICDS for p in glob(f"{folder}/*.json"))
    return "drivers " + (", ".join(map(_driver, paths)) or "none")


def _driver(path: str) -> str:
    try:
        library = json.loads(Path(path).read_text())["ICD"]["library_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{path} (unreadable)"
    there = "/" not in library or (Path(path).parent / library).is_file()
    return path if there else f"{path} (names {library}, which is not there)"


def _mujoco(kind: str, python: str, packages: str) -> Finding:
    about = ABOUT[kind]
    try:
        return Finding(about, ask(DRAW, python, {"MUJOCO_GL": kind, "PYOPENGL_PLATFORM": kind}))
    except UserError as error:
        remedy = "pip install -e '.[sim]'" if "No module named" in str(error) else packages
        return Finding(about, f"{error}; {remedy}", ok=False)


CHECKS: Mapping[str, Callable[[str], Finding]] = {"egl": egl, "osmesa": osmesa, "vulkan": vulkan}
