#!/bin/sh
# Install Trunkline into a new virtual environment; every package must match its locked hash.
# The images run this, and check.sh runs it without a container.
#
#   sh deploy/docker/install.sh ENVIRONMENT CACHE [BASE …]
set -eu
environment=$1
cache=$2
shift 2
cd "$(dirname "$0")/../.."
python3 -m venv "$environment"
pip() { "$environment/bin/python" -m pip --disable-pip-version-check "$@"; }
for lock in torch requirements; do
  pip install -q --no-cache-dir --no-deps --require-hashes -r "deploy/docker/$lock.txt"
done
pip install -q --no-cache-dir --no-deps --no-build-isolation .
pip check
"$environment/bin/python" -m compileall -qq "$environment/lib" || true # torch has code of a newer Python
mkdir -p "$cache"
for base in "$@"; do
  TRUNKLINE_CACHE=$cache "$environment/bin/trunkline" base pull "$base"
done
