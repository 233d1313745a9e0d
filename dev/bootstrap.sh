#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What every make target needs, on a fresh machine: system packages (as root on Debian or Ubuntu) and .venv
# from hashed locks. Repeatable: what is there already is not touched, and a second run only looks.
set -eu
cd "$(dirname "$0")/.."

# --- system packages -------------------------------------------------------------------------------------
# Each line: what proves that the package is there, and the package.
missing=""
need() { # need PROOF PACKAGE
    case "$1" in
        /*) [ -e "$1" ] && return 0 ;;
        *) command -v "$1" >/dev/null 2>&1 && return 0 ;;
    esac
    missing="$missing $2"
}
PATH="$PATH:/usr/sbin:/sbin"
python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || missing="$missing python3-venv"
need /etc/ssl/certs/ca-certificates.crt ca-certificates
need git git
if [ "$(uname -s)" = Linux ]; then
    need buildah buildah
    need skopeo skopeo
    need runc runc
    need debootstrap debootstrap
    need nft nftables
    need ip iproute2
    need conntrack conntrack
fi
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "bootstrap: not root, so these packages are not installed:$missing (what needs them is skipped)" >&2
    elif ! command -v apt-get >/dev/null 2>&1; then
        echo "bootstrap: no apt-get here; install these yourself:$missing (what needs them is skipped)" >&2
    else
        echo "bootstrap: installing$missing" >&2
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        # shellcheck disable=SC2086  # a list of words on purpose
        apt-get install -y -qq --no-install-recommends $missing >/dev/null
    fi
fi

# --- .venv -----------------------------------------------------------------------------------------------
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "bootstrap: python3 is $(python3 -V 2>&1 | cut -d' ' -f2), but 3.11 or newer is needed; install it first" >&2
    exit 1
}
wanted=$(cat locks/uv.txt locks/dev.txt locks/build.txt pyproject.toml |
    python3 -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
stamp=.venv/.locks-sha256
if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null || true)" = "$wanted" ]; then
    exit 0
fi
echo "bootstrap: making .venv from locks/" >&2
[ -x .venv/bin/python ] && [ -x .venv/bin/pip ] || python3 -m venv --clear .venv
rm -f "$stamp"
.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r locks/uv.txt
uv="env VIRTUAL_ENV=$PWD/.venv .venv/bin/uv --quiet"
$uv pip install --require-hashes --no-deps -r locks/dev.txt -r locks/build.txt
$uv pip install --no-deps --no-build-isolation -e .
printf '%s\n' "$wanted" >"$stamp"
