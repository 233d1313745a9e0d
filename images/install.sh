#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs inside a build. `install.sh packages EXTRA` makes the environment /opt/sovereign from the hashed lock of one
# extra; `install.sh wheels` adds our wheels to it. Byte code is hash-based and unchecked: the time stamps of the
# layer are set to 0 later, and uid 1000 could not write the byte code again.
set -eu
context=/context
home=/opt/sovereign
python=$home/bin/python
[ ! -f /run/secrets/packages ] || . /run/secrets/packages
[ ! -f /run/secrets/ca ] || export SSL_CERT_FILE=/run/secrets/ca
export UV_LINK_MODE=copy UV_NO_PROGRESS=1 UV_PYTHON_DOWNLOADS=never

pip_install() { "$context/uv" pip install --quiet --python "$python" --no-deps "$@"; }
byte_compile() { "$python" -m compileall -q --invalidation-mode unchecked-hash "$@" >/dev/null || true; }
site_packages() { "$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

case $1 in
packages)
    python3 -m venv --without-pip "$home"
    pip_install --require-hashes -r "$context/locks/$2.txt"
    [ -z "${DIET:-}" ] || "$python" "$context/diet.py"
    byte_compile -j 0 "$(site_packages)"
    rm -f "$home/.lock"
    ;;
wheels)
    pip_install --no-index "$context"/wheels/*.whl
    site=$(site_packages)
    for wheel in "$context"/wheels/*.whl; do
        "$python" -m zipfile -l "$wheel" | awk -v site="$site" '$1 ~ /\.py$/ { print site "/" $1 }'
    done | byte_compile -i -
    rm -f "$home/.lock"
    ;;
*)
    echo "install.sh: expected 'packages EXTRA' or 'wheels', found '$1'" >&2
    exit 2
    ;;
esac
