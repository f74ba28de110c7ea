#!/usr/bin/env bash
# Set up the scratch environment of the peer comparison in .venv at the repository root (ignored by git).
# llama-cpp-python is built from its source distribution for this very processor; that takes some minutes.
#
#   benches/peers/setup.sh            versions below
#   VENV=DIR benches/peers/setup.sh   another place
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=${VENV:-$root/.venv}
jobs=${JOBS:-2}

[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install 'numpy>=2,<3' 'gguf==0.19.0' jinja2 diskcache typing-extensions
# GGML_NATIVE lets it use every instruction this processor has, which the published wheels do not.
CMAKE_ARGS="-DGGML_NATIVE=ON -DCMAKE_BUILD_TYPE=Release" CMAKE_BUILD_PARALLEL_LEVEL=$jobs \
    "$venv/bin/python" -m pip install --no-binary llama-cpp-python 'llama-cpp-python==0.3.36'
"$venv/bin/python" - <<'CHECK'
import gguf, llama_cpp, numpy
print("llama-cpp-python", llama_cpp.__version__, "| numpy", numpy.__version__)
print(llama_cpp.llama_print_system_info().decode())
CHECK
