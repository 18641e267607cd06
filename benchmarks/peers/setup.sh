#!/usr/bin/env bash
# Makes the environments of the peers of `benchmarks/training.py` under runs/benchmarks/envs: their pins clash with ours and with each
# other's.
#
#   benchmarks/peers/setup.sh [trl swift llamafactory]      all three when none is named
#
# Their torch is the same build as ours (.venv), so that what differs is the trainer. Running it again takes a moment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=.venv/bin/python
[[ -x $python ]] || { echo "peers: no .venv; run make setup first" >&2; exit 1; }
torch=$("$python" -c 'import torch; print(torch.__version__)')
export PIP_DISABLE_PIP_VERSION_CHECK=1

[[ $# -gt 0 ]] || set -- trl swift llamafactory
for name in "$@"; do
  list=benchmarks/peers/$name.txt
  environment=runs/benchmarks/envs/$name
  wanted=$(sha256sum "$list" | cut -c1-16)-$torch
  if [[ -f $environment/ready && $(<"$environment/ready") == "$wanted" ]]; then
    echo "peers: $environment is ready"
    continue
  fi
  echo "peers: making $environment"
  rm -rf "$environment"
  "$python" -m venv "$environment"
  pip=("$environment/bin/python" -m pip install --quiet --progress-bar off)
  "${pip[@]}" --no-deps "torch==$torch"  # first and alone: the build that we have, not the one the resolver would choose
  "${pip[@]}" --requirement "$list"
  # Where torch is the CPU build, torchvision needs a repair, as it does in .venv; else this does nothing.
  "$environment/bin/python" scripts/repair_cpu.py
  "$environment/bin/python" -m pip freeze >"$environment/versions.txt"
  echo "$wanted" >"$environment/ready"
done
