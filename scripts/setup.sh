#!/usr/bin/env bash
# Makes .venv, with everything that runs, tests and checks the project: `make setup`.
#
#   scripts/setup.sh          for this machine: the GPU build of the engine where `nvidia-smi` sees a GPU, else the CPU build
#   scripts/setup.sh gpu      for a GPU that is not here yet (container images, the head node of a cluster); `cpu` likewise
#
# Running it again takes a moment and needs no network: .venv/rbft-setup holds what was set up, written last, so that a set-up cut
# short goes on where it stopped. Versions come from constraints.txt.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
stamp=$venv/rbft-setup
say() { echo "setup: $*"; }
stop() { echo "setup: $*" >&2; exit 1; }

# Two terminals may ask at once: the second waits, then finds all done. The lock is on this file, so there is none to clean up.
exec 9<"${BASH_SOURCE[0]}"
flock 9

find_python() {
  local candidate
  for candidate in python3.11 python3.12 python3 python; do
    # Not only on PATH: version switchers leave names there that do not run.
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  stop "no Python 3.11 or 3.12 on PATH; install one (Debian, Ubuntu: apt install python3.12 python3.12-venv python3.12-dev) and run again"
}

has_gpu() { nvidia-smi --list-gpus 2>/dev/null | grep -q '^GPU'; }

hash_of() { sha256sum | cut -c1-16; }
# Only the tables that decide what is installed: a change of lint rules is no reason to install.
project_table() { "$python" -c "import tomllib; t = tomllib.load(open('pyproject.toml', 'rb')); print(t['project'], t['build-system'], t['tool']['setuptools'])"; }
dependency_table() { "$python" -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(p['dependencies'], p['optional-dependencies'])"; }

if [[ -x $venv/bin/python ]]; then python=$venv/bin/python; else python=$(find_python); fi
was_flavour="" was_dependencies="" was_project=""
if [[ -f $stamp ]]; then read -r was_flavour was_dependencies was_project <"$stamp" || true; fi
if [[ -n ${1:-} ]]; then flavour=$1; elif [[ -n $was_flavour ]]; then flavour=$was_flavour; elif has_gpu; then flavour=gpu; else flavour=cpu; fi
[[ $flavour == cpu || $flavour == gpu ]] || stop "'$flavour' is neither cpu nor gpu"
dependencies=$({ dependency_table; cat constraints.txt scripts/repair_cpu.py scripts/torchvision_hook.py; } | hash_of)
project=$(project_table | hash_of)

if [[ -n $was_flavour && $was_flavour != "$flavour" ]]; then
  stop "$venv is set up for $was_flavour; to change to $flavour: rm -rf $venv, then run again"
fi
if [[ $flavour == cpu ]] && [[ -z ${1:-} ]] && has_gpu; then
  say "$venv is set up for CPU but there is a GPU now; to use it: rm -rf $venv, then run again"
fi
if [[ "$was_flavour $was_dependencies $was_project" == "$flavour $dependencies $project" ]]; then
  say "$venv is ready ($flavour)"
  exit 0
fi

# DeepSpeed compiles its CPU optimizer at first use (offloading), and that is too late to learn that the compiler is missing.
command -v g++ >/dev/null || stop "no g++ on PATH; install it (Debian, Ubuntu: apt install g++) and run again; DeepSpeed compiles its CPU optimizer with it"
include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
[[ -f $include/Python.h ]] || stop "no $include/Python.h; install Python's headers (Debian, Ubuntu: apt install $(basename "$include")-dev) and run again"

if [[ ! -x $venv/bin/pip ]]; then
  say "making $venv with $("$python" --version)"
  "$python" -m venv "$venv" || stop "could not make $venv (Debian, Ubuntu: apt install $(basename "$include")-venv), then run again"
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1
pip() { "$venv/bin/python" -m pip "$@"; }

rm -rf rbft.egg-info  # an old one beside the code would hide entry points that are new
if [[ "$was_flavour $was_dependencies" != "$flavour $dependencies" ]]; then
  case $flavour in
    gpu) say "for GPU (CUDA builds of torch and vLLM); some 10 GB, several minutes the first time" ;;
    cpu) say "for CPU (CPU builds of torch and vLLM); some 5 GB, several minutes the first time" ;;
  esac
  rm -f "$stamp"
  if [[ $flavour == cpu ]]; then
    # First and alone, because vLLM's CPU build takes this build and no other, and not every package index has it.
    torch=$(grep '^torch==' constraints.txt)
    pip install --quiet --no-deps "$torch+cpu" || stop "the package index has no $torch+cpu; name PyTorch's index of CPU builds" \
      "(pytorch.org, Get started, CPU, the address after --index-url) in PIP_EXTRA_INDEX_URL and run again"
  fi
  pip install --progress-bar off --constraint constraints.txt --editable ".[$flavour,dev]" | { grep -v '^Requirement already satisfied' || true; }
  if [[ $flavour == cpu ]]; then
    "$venv/bin/python" scripts/repair_cpu.py
  else
    "$venv/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)' || stop "the package index gave a CPU build of torch for a GPU" \
      "set-up; take CPU builds out of pip's indexes and links (pip config list), rm -rf $venv and run again"
  fi
else
  pip install --quiet --no-deps --no-build-isolation --editable .
fi

echo "$flavour $dependencies $project" >"$stamp.part"
mv "$stamp.part" "$stamp"
say "$venv is ready ($flavour)"
