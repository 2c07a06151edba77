#!/bin/sh
# The adapters against the frameworks themselves, each version in an environment of its own (about 5 GB, ten minutes).
#
#     scripts/test_adapters.sh [DIRECTORY]        # keeps the environments there; without it they go with the script
set -eu

TRL_OLDEST=0.29.1
TRL_NEWEST=${TRL_NEWEST:-}  # empty: the newest there is
VERL_OLDEST=0.8.0
VERL_NEWEST=0.9.1

root=$(cd "$(dirname "$0")/.." && pwd)
if [ $# -gt 0 ]; then
    mkdir -p "$1"
    where=$(cd "$1" && pwd)
else
    where=$(mktemp -d)
    trap 'rm -rf "$where"' EXIT
fi
failed=""

environment() { # name, requirements...
    name=$1
    shift
    venv="$where/$name"
    if [ ! -e "$venv/.made" ]; then
        echo "Installing $name ..."
        rm -rf "$venv"
        python3 -m venv "$venv"
        "$venv/bin/python" -m pip install -q --retries 2 torch==2.13.0 pytest hypothesis httpx numpy pyarrow "$@"
        "$venv/bin/python" -m pip install -q --no-deps -e "$root/collectors"
        touch "$venv/.made"
    fi
}

run() { # name, tests...
    name=$1
    shift
    echo "== $name"
    # Not the project's configuration: its plug-ins are not installed here, and a framework's warnings are its own.
    (cd "$root" && "$where/$name/bin/python" -m pytest -q -c /dev/null --rootdir . --import-mode=importlib \
        -p no:cacheprovider -W ignore "$@") || failed="$failed $name"
}

environment trl-oldest "trl==$TRL_OLDEST" "transformers==5.23.0" requests
run trl-oldest tests/collectors/adapters/test_trl.py

environment trl-newest "trl${TRL_NEWEST:+==$TRL_NEWEST}"
run trl-newest tests/collectors/adapters/test_trl.py

# Without the engines and trainers that need a GPU: what importing its trainers takes.
environment verl "ray>=2.60" "tensordict>=0.8,<=0.10" omegaconf hydra-core "transformers>=5.5.3,<5.11" codetiming \
    datasets cachetools uvicorn fastapi torchdata peft pillow packaging "TransferQueue==0.1.11"
for version in "$VERL_OLDEST" "$VERL_NEWEST"; do
    "$where/verl/bin/python" -m pip install -q --no-deps "verl==$version"
    echo "verl $version:"
    TAILWATCH_TEST_TRANSFER_QUEUE=1 run verl tests/collectors/adapters/test_verl_real.py
done

[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
