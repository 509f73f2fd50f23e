#!/usr/bin/env bash
# Installs from Debian, when we may, what no wheel holds: the renderers of MuJoCo that need no screen (EGL, OSMesa), and
# with the argument "browser" a headless Chromium, in which a test opens the report.
set -euo pipefail
missing=""
if [ "${1:-}" = browser ]; then
    what="headless Chromium"
    packages="chromium-headless-shell"
    command -v "${CHROMIUM:-chromium-headless-shell}" chromium chromium-browser google-chrome >/dev/null || missing=" a browser"
else
    what="the renderer"
    packages="libegl1 libgl1 libgl1-mesa-dri libglib2.0-0 libosmesa6"
    for library in libEGL.so.1 libGL.so.1 libglib-2.0.so.0 libOSMesa.so.8; do
        ldconfig -p | grep -q "$library" || missing="$missing $library"
    done
fi
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
else
    echo "$what lacks$missing; install: sudo apt-get install $packages (or your system's equivalent)" >&2
    exit 2
fi
