#!/usr/bin/env bash
# A new user's path, as the README and the guides give it: write a method, a model and a benchmark, install them, run
# their tests, evaluate, report. Nothing is installed into .venv: the packages go into a folder of their own.
#   bash scripts/fresh_user.sh [BIN]      BIN is the folder with python, pip and vlaprune (default: .venv/bin)
set -euo pipefail
bin=$(cd "${1:-$(dirname "$0")/../.venv/bin}" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}" PIP_DISABLE_PIP_VERSION_CHECK=1
vlaprune() { "$bin/vlaprune" "$@"; }

for kind in method model bench; do
    vlaprune new $kind "fresh_$kind" >/dev/null
    "$bin/pip" install -q --no-deps --target site "./fresh_$kind"
    vlaprune list | grep -q "^  fresh_$kind"
    "$bin/python" -m pytest -q -p no:cacheprovider "fresh_$kind"
done
vlaprune eval -m model=toy method=dense,fresh_method bench=toy logger=csv episodes=3 \
    output='runs/method/${hydra:runtime.choices.method}'
vlaprune eval model=fresh_model method=uniform bench=toy logger=csv episodes=2 output=runs/model
vlaprune eval model=toy method=dense bench=fresh_bench logger=csv episodes=3 output=runs/bench
vlaprune watch --once runs
vlaprune report runs/method --output tables --html report.html | tee said
grep -q fresh_method said
test -s tables/table.csv -a -s report.html
echo "a new method, model and benchmark: written, installed, tested, run and reported"
