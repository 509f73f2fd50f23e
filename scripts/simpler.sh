#!/usr/bin/env bash
# Makes FOLDER/python, an interpreter with one of SIMPLER's two simulators, for bench.python=FOLDER/python.
#   bash scripts/simpler.sh ms3 FOLDER             mani-skill 3 (the four WidowX tasks)
#   bash scripts/simpler.sh ms2 FOLDER [CHECKOUT]  ManiSkill2_real2sim (all tasks), cloned unless CHECKOUT is given
#   bash scripts/simpler.sh assets FOLDER DATA WIDOWX  mani-skill 3's assets, as links: DATA is ManiSkill2_real2sim's
#                                                  data folder, WIDOWX a checkout of haosulab/ManiSkill-WidowX250S
# Without a GPU's Vulkan driver it unpacks Mesa's lavapipe into FOLDER (Debian 12; nothing of the system is changed).
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,7s/^# *//p' "$0" >&2; exit 2; }
backend=$1 folder=$(mkdir -p "$2" && cd "$2" && pwd)
commit=ef7a4d4fdf4b69f2c2154db5b15b9ac8dfe10682
pip="$folder/venv/bin/pip install -q --disable-pip-version-check"
library=usr/lib/x86_64-linux-gnu

fetch() {  # fetch SUITE TARGET PACKAGE...: unpacks Debian packages of a suite under TARGET, with an apt state of its own
    local suite=$1 target=$2 state="$folder/apt/$1"
    shift 2
    mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$target"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $suite main" > "$state/sources.list"
    local options=(-qq -o "Dir::Etc::sourcelist=$state/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$state/lists" -o "Dir::Cache=$state/cache" -o APT::Sandbox::User="$(id -un)")
    apt-get "${options[@]}" update
    for package in "$@"; do (cd "$state" && apt-get "${options[@]}" download "$package/$suite" && dpkg -x "$package"_*.deb "$target" && rm "$package"_*.deb); done
}

driver() {  # driver MESA: writes the file that names lavapipe to the Vulkan loader
    echo "{\"ICD\": {\"api_version\": \"1.4.0\", \"library_path\": \"$1/$library/libvulkan_lvp.so\"}, \"file_format_version\": \"1.0.0\"}" > "$folder/lavapipe.json"
}

launcher() {  # launcher COMMAND...: writes FOLDER/python
    printf '#!/usr/bin/env bash\n%s\nexec %s "$@"\n' "$1" "$2" > "$folder/python"
    chmod +x "$folder/python"
}

if [ "$backend" = assets ]; then
    data=$(realpath "$3") widowx=$(realpath "$4") twins=$folder/data/tasks/bridge_v2_real2sim_dataset
    mkdir -p "$twins" "$folder/data/robots"
    ln -sfn "$data/custom" "$twins/custom"
    ln -sfn "$data/real_inpainting" "$twins/real_inpainting"
    ln -sfn "$data/hab2_bench_assets/stages" "$twins/stages"
    ln -sfn "$widowx" "$folder/data/robots/widowx"
    exit
fi

"${PYTHON:-python3.11}" -m venv "$folder/venv"
if [ "$backend" = ms3 ]; then
    $pip torch==2.13.0
    $pip mani-skill==3.0.1
elif [ "$backend" = ms2 ]; then
    source=${3:-$folder/ManiSkill2_real2sim}
    [ -d "$source" ] || git clone -q --no-checkout https://github.com/simpler-env/ManiSkill2_real2sim "$source"
    git -C "$source" checkout -q $commit  # also where an earlier clone was cut off before it
    $pip -e "$source" 'numpy<2' 'setuptools<81' 'gymnasium<1'
else
    echo "backend $backend is not one of ms2, ms3" >&2
    exit 2
fi

if ls /usr/share/vulkan/icd.d/nvidia*.json /etc/vulkan/icd.d/nvidia*.json >/dev/null 2>&1 || [ -n "${VK_ICD_FILENAMES:-}" ]; then
    launcher "" "$folder/venv/bin/python"
elif ! grep -q bookworm /etc/os-release; then
    launcher "" "$folder/venv/bin/python"
    echo "no GPU driver for Vulkan found; SAPIEN then needs lavapipe of Mesa 25 (ms3) or 26 (ms2): install your system's mesa-vulkan-drivers" >&2
elif [ "$backend" = ms3 ]; then
    fetch bookworm-backports "$folder/mesa" mesa-vulkan-drivers
    driver "$folder/mesa"
    launcher "export VK_ICD_FILENAMES=$folder/lavapipe.json" "$folder/venv/bin/python"
else  # Mesa 26 is built for a newer C library: Python runs under that one's loader, with its own libraries first
    fetch trixie-backports "$folder/mesa" mesa-vulkan-drivers
    fetch trixie "$folder/libraries" libc6 libllvm19 libdisplay-info2 libstdc++6 libgcc-s1 libelf1t64 libdrm2 libdrm-amdgpu1 \
        libpng16-16t64 libzstd1 zlib1g libwayland-client0 libxcb-dri3-0 libxcb-present0 libxcb-randr0 libxcb-shm0 libxcb-sync1 \
        libxcb-xfixes0 libxcb1 libx11-xcb1 libx11-6 libxshmfence1 libexpat1 libxau6 libxdmcp6 libffi8 libxml2 libedit2 libtinfo6 \
        libz3-4 libbsd0 libmd0 libbz2-1.0 liblzma5 libvulkan1 libicu76
    driver "$folder/mesa"
    python=$(readlink -f "$folder/venv/bin/python") newer=$folder/libraries/$library
    launcher "export VK_ICD_FILENAMES=$folder/lavapipe.json" "$newer/ld-linux-x86-64.so.2 --library-path $(dirname "$(dirname "$python")")/lib:$newer:/$library --argv0 $folder/venv/bin/python $python"
fi
rm -rf "$folder/apt"
echo "$folder/python"
