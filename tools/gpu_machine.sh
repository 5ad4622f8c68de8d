#!/bin/sh
# Run a command on a GPU machine that has torch and no network, with the wheels that tools/fetch_gpu_wheels.py fetched:
#
#     sh tools/gpu_machine.sh python3 -m benchmarks.gpu --minutes 9 --out out
#
# The packages go to a folder beside the machine's own and before them, the tree's six before those. A second call finds them.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
site=${WBAR_GPU_SITE:-${TMPDIR:-/tmp}/wbar-gpu-site}

test -d "$root/.wheels" || { echo "no $root/.wheels: run tools/fetch_gpu_wheels.py" >&2; exit 2; }
for wheels in .wheels .wheels-more; do
    if [ -d "$root/$wheels" ] && [ ! -e "$site/$wheels.complete" ]; then
        python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$root/$wheels"/*.whl
        touch "$site/$wheels.complete"
    fi
done
# A folder for Fashion-MNIST where one of the places is that the dataset is looked for in: below the tree.
if [ -e "$root/.wheels/fashion-mnist.tar.xz" ] && [ ! -d "$root/data/FashionMNIST/raw" ]; then
    mkdir -p "$root/data/FashionMNIST/raw"
    python3 -m tarfile --filter data -e "$root/.wheels/fashion-mnist.tar.xz" "$root/data/FashionMNIST/raw"
fi

for room in wbar averaging training store worker service; do
    test -d "$root/$room" || { echo "no $root/$room: run this in wbar's tree" >&2; exit 2; }
done
rooms="$root:$root/averaging:$root/training:$root/store:$root/worker:$root/service"
PYTHONPATH="$rooms:$site${PYTHONPATH:+:$PYTHONPATH}"
PATH="$site/bin:$PATH"
export PYTHONPATH PATH
exec "$@"
