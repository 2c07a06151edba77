#!/bin/sh
# The secrets of a fresh installation, made once: usage: first_start.sh [directory, default /run/tailwatch]
#   keys/first        an API key (read, write, control) for trainers and for signing in to the pages
#   scrape/key        an API key (read) that Prometheus sends to /metrics
#   grafana/password  of Grafana's user admin
# Files are readable by their owner and group only. A key that exists and is not revoked is never made again, except
# that the scrape key is replaced when its file was lost: Prometheus cannot be told by a person.
set -eu

place="${1:-/run/tailwatch}"
umask 027

active() {
    tailwatch keys list 2>/dev/null | awk -F '\t' -v name="$1" '$2 == "active" && $6 == name { found = 1 } END { exit !found }'
}

write() { # write FILE COMMAND...: complete or not at all
    file="$1"; shift
    mkdir -p "$(dirname "$file")"
    rm -f "$file.part"
    "$@" > "$file.part"
    chmod 440 "$file.part"
    mv -f "$file.part" "$file"
}

if ! active first; then
    write "$place/keys/first" tailwatch keys create first --scope read --scope write --scope control
fi
if ! [ -s "$place/scrape/key" ] || ! active scrape; then
    write "$place/scrape/key" tailwatch keys create scrape --scope read
fi
if ! [ -s "$place/grafana/password" ]; then
    write "$place/grafana/password" python3 -c 'import secrets; print(secrets.token_urlsafe(24))'
fi

echo "Secrets are ready. To read them:"
echo "  docker compose exec tailwatch cat $place/keys/first          # API key; also signs in to the pages"
echo "  docker compose exec grafana cat $place/grafana/password      # Grafana, user admin"
