#!/usr/bin/env bash
# Run the steps of the images without containers, and start the server as they do: locked packages,
# a new environment, a user's home that can't be written, a new workspace. Takes minutes.
#
#   deploy/docker/check.sh [BASE]       the base's files must be in TRUNKLINE_CACHE, or are pulled
set -euo pipefail
cd "$(dirname "$0")/../.."
base=${1:-smollm2-135m}
folder=$(mktemp -d)
server=
trap '[[ -z $server ]] || kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
[[ -e deploy/docker/torch.txt ]] || python3 deploy/docker/lock.py
cache=${TRUNKLINE_CACHE:-$folder/cache}
sh deploy/docker/install.sh "$folder/trunkline" "$cache" "$base"
mkdir "$folder/work"
port=$((20000 + RANDOM % 20000))
in_image=(
  env -i PATH="$folder/trunkline/bin:/usr/bin:/bin" HOME=/nonexistent PYTHONDONTWRITEBYTECODE=1
  TRUNKLINE_CACHE="$cache" TRUNKLINE_WORKSPACE="$folder/work" TRUNKLINE_BASE="$base"
  TRUNKLINE_SERVE_PORT="$port" TRUNKLINE_SERVE_HOST=0.0.0.0 OMP_NUM_THREADS=1
)
"${in_image[@]}" trunkline db upgrade
key=$("${in_image[@]}" trunkline keys create check --role viewer)
"${in_image[@]}" trunkline doctor
"${in_image[@]}" trunkline serve &
server=$!
for _ in $(seq 240); do
  if "${in_image[@]}" python -c "import urllib.request; \
urllib.request.urlopen('http://127.0.0.1:$port/ready', timeout=4)" 2>/dev/null; then
    ready=1
    break
  fi
  kill -0 "$server"
  sleep 0.5
done
[[ ${ready:-} ]] || { echo "The server was not ready in time." >&2; exit 1; }
"${in_image[@]}" python - "$port" "$key" <<'PROGRAM'
import sys
import urllib.request

port, key = sys.argv[1:]
request = urllib.request.Request(
    f"http://127.0.0.1:{port}/metrics", headers={"Authorization": f"Bearer {key}"}
)
text = urllib.request.urlopen(request, timeout=10).read().decode()
assert "trunkline_ready 1.0" in text, text
PROGRAM
kill -TERM "$server"
wait "$server"
server=
echo "The steps of the image work: the server was ready, answered and stopped with exit code 0."
