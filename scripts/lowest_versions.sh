#!/bin/sh
# The SDK with the lowest versions it declares and nothing else: installs them into an environment of their own, checks
# that the import loads none of them and takes under 150 ms, and runs the SDK's tests that need nothing more.
# Usage: scripts/lowest_versions.sh [directory]      PYTHON=python3.10 to choose the interpreter
set -eu

cd "$(dirname "$0")/.."
venv="${1:-${TMPDIR:-/tmp}/tailwatch-lowest}"
python="${PYTHON:-python3}"

# "httpx>=0.27" in pyproject.toml is httpx==0.27.0 here: the lowest version is what is declared, not what is copied.
lowest=$(sed -n 's/^    "\(httpx\|numpy\|pyarrow\)>=\([0-9.]*\)",$/\1==\2/p' collectors/pyproject.toml)
[ "$(echo "$lowest" | wc -l)" = 3 ] || { echo "collectors/pyproject.toml does not declare three lowest versions" >&2; exit 1; }

"$python" -m venv --clear "$venv"
# shellcheck disable=SC2086  # a list of words
"$venv/bin/python" -m pip install -q $lowest
"$venv/bin/python" -m pip install -q --no-deps ./collectors
"$venv/bin/python" -m pip install -q pytest hypothesis trustme
"$venv/bin/python" -m pip list --format=freeze | grep -E "^(httpx|numpy|pyarrow|tailwatch)" | tr '\n' ' '
"$venv/bin/python" --version

cd "$venv"
"$venv/bin/python" - <<'PYTHON'
import subprocess, sys

code = "import time; t = time.perf_counter(); import tailwatch_collectors, sys; print(time.perf_counter() - t, *sys.modules)"
runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() for _ in range(9)]
seconds = sorted(float(run[0]) for run in runs)[4]
heavy = {"numpy", "pyarrow", "httpx", "torch", "pandas"} & set(runs[0][1:])
print(f"import tailwatch_collectors: {1e3 * seconds:.0f} ms, loads {heavy or 'none of numpy, pyarrow, httpx, torch'}")
code = code.replace("import tailwatch_collectors", "import tailwatch_collectors.collector")
runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() for _ in range(5)]
print(f"with all that connect needs: {1e3 * sorted(float(run[0]) for run in runs)[2]:.0f} ms")
sys.exit(seconds > 0.150 or bool(heavy))
PYTHON
cd - >/dev/null

# Those that use torch, the summary's kernels or the service are for the full environment.
tests=$(grep -L -E "^(import|from) (torch|tests.service|tailwatch_service)|torch" tests/collectors/test_*.py)
# shellcheck disable=SC2086  # a list of words
"$venv/bin/python" -m pytest -q -c /dev/null --rootdir . --import-mode=importlib -m "not slow" -p no:cacheprovider \
    -W ignore::pytest.PytestUnknownMarkWarning $tests
