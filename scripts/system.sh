#!/usr/bin/env bash
# Installs from Debian, when we may, what no wheel holds:
#   bash scripts/system.sh              the renderers of MuJoCo that need no screen (EGL, OSMesa)
#   bash scripts/system.sh browser      a headless Chromium, in which tests open the report
#   bash scripts/system.sh make         make itself
#   bash scripts/system.sh venv PYTHON  the module venv of Debian's Python, which is a package of its own
# It waits up to LOCK_SECONDS (default 900) while another process holds the package lock.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
missing=""
case "${1:-renderer}" in
browser)
    what="headless Chromium" packages="chromium-headless-shell"
    found=""
    for name in "${CHROMIUM:-}" chromium-headless-shell chromium chromium-browser google-chrome; do
        [ -n "$name" ] && command -v "$name" >/dev/null && found=yes
    done
    [ -n "$found" ] || missing=" a browser"
    ;;
make)
    what="this machine" packages="make"
    command -v make >/dev/null || missing=" make"
    ;;
venv)
    what="$2" packages="python3-venv"
    "$2" -c "import ensurepip" 2>/dev/null || missing=" the module ensurepip"
    ;;
renderer)
    what="the renderer" packages="libegl1 libgl1 libgl1-mesa-dri libglib2.0-0 libosmesa6"
    for library in libEGL.so.1 libGL.so.1 libglib-2.0.so.0 libOSMesa.so.8; do
        ldconfig -p | grep -q "$library" || missing="$missing $library"
    done
    ;;
*)
    sed -n '2,7s/^# *//p' "$0" >&2
    exit 2
    ;;
esac
[ -z "$missing" ] && exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "$what lacks$missing; install: sudo apt-get install $packages (or your system's equivalent)" >&2
    exit 2
fi

apt() {  # apt ARGUMENTS: apt-get, again every 5 seconds while another process holds one of its locks
    local deadline=$((SECONDS + ${LOCK_SECONDS:-900})) told="" said
    until said=$(LC_ALL=C apt-get -qq -o DPkg::Lock::Timeout=60 "$@" 2>&1); do
        if ! grep -qE "Could not get lock|Unable to (acquire|lock)" <<<"$said" || [ $SECONDS -ge $deadline ]; then
            echo "$said" >&2
            exit 2
        fi
        [ -n "$told" ] || echo "another process holds the package lock; waiting for it to install $packages" >&2
        told=yes
        sleep 5
    done
}

apt update
apt install -y --no-install-recommends $packages
