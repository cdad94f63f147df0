#!/usr/bin/env bash
# What launch/tpu_pod.sh has each host of a slice do; it need not be called by hand.
#
#   launch/tpu_host.sh setup|run|stop [FLAGS]
#
#   setup      installs this checkout in ~/tarflow_env and, with BUCKET, gcsfuse
#   run FLAGS  ends a run that is left from before, mounts BUCKET at MOUNT, and becomes
#              python -m tarflow_jax.main FLAGS --distributed=on
#   stop       SIGTERM to the run; returns when it has ended, or was killed after GRACE=120 seconds
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck disable=SC1091
source launch/common.sh

environment=$HOME/tarflow_env
pid_file=${PID_FILE:-/dev/shm/tarflow_jax.pid} # gone after a reboot, as the process is

setup() {
  # The system's Python may be older than 3.11: uv brings one.
  if ! [[ -x ~/.local/bin/uv ]]; then curl -fsSL https://astral.sh/uv/install.sh | sh; fi
  [[ -x $environment/bin/python ]] || ~/.local/bin/uv venv --python 3.11 "$environment"
  ~/.local/bin/uv pip install -q --python "$environment" -c constraints.txt -e '.[tpu]'
  if [[ -n ${BUCKET-} ]] && ! command -v gcsfuse >/dev/null; then
    local packages=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc
    curl -fsS "$packages/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] $packages gcsfuse-$(lsb_release -cs) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list
    sudo apt-get -qq update
    sudo apt-get -qq install -y gcsfuse
  fi
}

# The number may have gone to another process since.
is_run() {
  grep -qa tarflow_jax.main "/proc/$1/cmdline" 2>/dev/null
}

stop() {
  local pid left=${GRACE:-120}
  [[ -f $pid_file ]] && read -r pid <"$pid_file" && is_run "$pid" || return 0
  kill -TERM "$pid" 2>/dev/null || true
  while is_run "$pid"; do
    ((left > 0)) || kill -KILL "$pid" 2>/dev/null || true
    left=$((left - 1))
    sleep 1
  done
}

run() {
  stop
  if [[ -n ${BUCKET-} ]] && ! mountpoint -q "$MOUNT"; then
    sudo mkdir -p "$MOUNT"
    sudo chown "$(id -un)" "$MOUNT"
    # Checkpoints are renamed, and what one host renames must not be in another's cache.
    gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 "$BUCKET" "$MOUNT"
  fi
  echo $$ >"$pid_file" # `exec` keeps the number
  exec "$environment/bin/python" -m tarflow_jax.main "$@" --distributed=on
}

case ${1-} in
  setup | run | stop) "$@" ;;
  -h | --help) manual ;;
  '') manual && exit 2 ;;
  *) fail "'$1' is none of setup, run, stop." ;;
esac
