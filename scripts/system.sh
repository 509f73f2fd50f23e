#!/usr/bin/env bash
# Makes sure that MuJoCo can render without a screen: EGL and OSMesa from Debian, when we may install them.
set -euo pipefail
packages="libegl1 libgl1 libgl1-mesa-dri libglib2.0-0 libosmesa6"
missing=""
for library in libEGL.so.1 libGL.so.1 libglib-2.0.so.0 libOSMesa.so.8; do
    ldconfig -p | grep -q "$library" || missing="$missing $library"
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
else
    echo "the renderer lacks$missing; install: sudo apt-get install $packages (or your system's equivalent)" >&2
    exit 2
fi
