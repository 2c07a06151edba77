#!/bin/sh
# Set up .venv for `make demo` (service) or `make test` (dev), from nothing. Runs once per change of its inputs.
set -eu

want="${1:?usage: bootstrap.sh service|dev}"
venv="${TAILWATCH_VENV:-.venv}"
log="$venv/bootstrap.log"

fail() { printf 'tailwatch: %s\n' "$1" >&2; exit 1; }
as_root() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

find_python() {
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.10; do
        if command -v "$candidate" >/dev/null && new_enough "$candidate"; then echo "$candidate"; return; fi
    done
    if ! command -v python3 >/dev/null; then fail "no python3 found; install Python 3.10 or newer"; fi
    fail "$(python3 --version 2>&1) is too old; install Python 3.10 or newer, or set PYTHON=/path/to/python3"
}

python=$(find_python)
fingerprint=$(cat constraints.txt ./*/pyproject.toml "$0" | cksum | tr ' ' -)
stamp="$venv/.installed-$want-$fingerprint"
if [ -e "$stamp" ] || { [ "$want" = service ] && [ -e "$venv/.installed-dev-$fingerprint" ]; }; then exit 0; fi

if [ ! -x "$venv/bin/python" ]; then
    echo "Creating $venv with $("$python" --version 2>&1) ..."
    if ! "$python" -m venv "$venv" >/dev/null 2>&1; then
        rm -rf "$venv"
        as_root || fail "$python cannot create a virtual environment; install the package python3-venv"
        echo "Installing python3-venv ..."
        { apt-get update -qq && apt-get install -y -qq python3-venv; } >/dev/null 2>&1 \
            || fail "could not install python3-venv; is the network reachable?"
        "$python" -m venv "$venv" || fail "$python cannot create a virtual environment"
    fi
fi

install() {
    if ! "$venv/bin/python" -m pip install -q --retries 2 -c constraints.txt "$@" >"$log" 2>&1; then
        reason=$(grep -m 1 -i -E "^error|error: " "$log" | cut -c 1-160)
        fail "pip failed${reason:+ ($reason)}; is the network reachable? The whole log: $log"
    fi
}

# A missing network is said at once, not after minutes of retries.
"$venv/bin/python" -m pip install -q --dry-run --ignore-installed --no-deps --retries 0 hatchling >"$log" 2>&1 \
    || fail "cannot reach a package index; is the network reachable? The whole log: $log"

case "$want" in
service)
    echo "Installing the service (about a minute the first time) ..."
    install -e collectors -e dashboards -e service
    ;;
dev)
    echo "Installing everything, torch and the test tools included (a few minutes the first time) ..."
    install torch==2.13.0
    install -e collectors -e dashboards -e service -e alp -r requirements-dev.txt
    packages=""
    command -v chromium >/dev/null || packages="chromium"
    command -v prometheus >/dev/null || packages="$packages prometheus"
    command -v prometheus-alertmanager >/dev/null || packages="$packages prometheus-alertmanager"
    if [ -n "$packages" ]; then
        as_root || fail "the tests run real browsers and monitors; install the packages: $packages"
        echo "Installing $packages ..."
        # shellcheck disable=SC2086  # a list of words
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends $packages; } >"$log" 2>&1 \
            || fail "could not install $packages; is the network reachable? (whole log: $log)"
    fi
    ;;
*) fail "unknown set $want" ;;
esac
echo "Compiling the statistics kernel (once) ..."
"$venv/bin/python" -c "from tailwatch_collectors.summary import warm_up; warm_up()" >"$log" 2>&1 \
    || fail "the statistics kernel does not compile (whole log: $log)"
rm -f "$venv/.installed-$want-"*
touch "$stamp"
