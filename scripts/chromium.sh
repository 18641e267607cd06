#!/usr/bin/env bash
# Install Debian's Chromium, with which tests look at the pages that we write. Does nothing where there is one.
set -euo pipefail

for name in chromium chromium-browser google-chrome google-chrome-stable; do
    if command -v "$name" > /dev/null; then
        echo "$(command -v "$name") is there"
        exit 0
    fi
done
if ! command -v apt-get > /dev/null; then
    echo "no apt-get here: install Chromium or Chrome as this system does, under one of its usual names" >&2
    exit 1
fi
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y --no-install-recommends chromium
