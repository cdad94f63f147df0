#!/usr/bin/env bash
# Cloud TPU slices: requests them, runs the program on all their hosts, and keeps it running.
#
#   NAME=... ZONE=... TYPE=... launch/tpu_pod.sh VERB [FLAGS]
#
#   create       makes one slice now
#   queue        queues a request for one slice or several; they come when there is room
#   setup        copies this checkout to every host and installs it
#   run FLAGS    python -m tarflow_jax.main FLAGS --distributed=on, on every host at once
#   watch FLAGS  queue, setup and run, and again whenever a slice is lost or the run fails, until
#                the run is done (status 0) or its command was invalid (status 2)
#   stop         SIGTERM on every host: the run saves itself, and `run` resumes from there
#   delete       gives the slices back
#
# Settings: NAME of the slice, its ZONE and its TYPE (v4-32, v5litepod-64, v5p-128, v6e-64).
#   SPOT=1              cheaper, and may be taken away
#   NUM_SLICES=1        more only with queue and watch
#   BUCKET, MOUNT       a bucket that `run` mounts with gcsfuse, and where (default /mnt/BUCKET)
#   LIBTPU_INIT_ARGS    flags of the TPUs' compiler for `run`; docs/planning.md has one for v6e
#   GCLOUD_FLAGS        more flags for create and queue, such as '--network=NET --reserved'
#   RUNTIME             the software version, where the one that goes with TYPE will not do
#   POLL=30, TRIES=10   `watch` looks every POLL seconds; after a failure it waits twice as long as
#                       the last time (600 at most), and gives up after TRIES failures in a row
#   DRY_RUN=1           prints the commands and runs none
#
# All hosts must see the workdir: name one below MOUNT. To end `run` or `watch` here does not end
# the run there; `stop` does. Run `watch` on a machine that stays up.
#
#   export NAME=tarflow ZONE=us-east5-b TYPE=v6e-64 SPOT=1 BUCKET=my-bucket
#   launch/tpu_pod.sh watch --config=configs/afhq256.py --workdir=/mnt/my-bucket/afhq
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC1091
source "$root/launch/common.sh"

runtime() {
  case $TYPE in
    v[234]-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) fail "TYPE must be v4-N, v5litepod-N, v5p-N or v6e-N, or RUNTIME given; got '$TYPE'." ;;
  esac
}

create() {
  ((slices == 1)) || fail "create makes one slice; for NUM_SLICES=$slices use queue."
  run_or_print gcloud compute tpus tpu-vm create "$name" --zone="$ZONE" --accelerator-type="$TYPE" \
    --version="$version" ${flags[@]+"${flags[@]}"} --quiet
}

queue() {
  local nodes=("--node-id=$name")
  ((slices == 1)) || nodes=("--node-count=$slices" "--node-prefix=$name")
  run_or_print gcloud compute tpus queued-resources create "$name" --zone="$ZONE" "${nodes[@]}" \
    --accelerator-type="$TYPE" --runtime-version="$version" ${flags[@]+"${flags[@]}"} --quiet
}

# on_hosts ssh|scp ARGUMENTS
on_hosts() {
  local group=(tpu-vm "$1") nodes=()
  ((slices == 1)) || group=(queued-resources "$1") nodes=(--node=all)
  shift
  run_or_print gcloud compute tpus "${group[@]}" "$@" --zone="$ZONE" --worker=all \
    ${nodes[@]+"${nodes[@]}"} --quiet
}

# on_hosts_script ARGUMENTS: of launch/tpu_host.sh, which `setup` has brought there
on_hosts_script() {
  local settings=()
  [[ -z ${BUCKET-} ]] || settings+=("BUCKET=$BUCKET" "MOUNT=${MOUNT:-/mnt/$BUCKET}")
  [[ -z ${LIBTPU_INIT_ARGS-} ]] || settings+=("LIBTPU_INIT_ARGS=$LIBTPU_INIT_ARGS")
  [[ -z ${settings[*]-} ]] || settings=(env "${settings[@]}")
  on_hosts ssh "$name" --command="$before$(quoted ${settings[@]+"${settings[@]}"} \
    bash tarflow_jax/launch/tpu_host.sh "$@")"
}

setup() {
  local archive="tarflow_jax-$name.tgz" before
  before="mkdir -p tarflow_jax && tar -xzf $archive -C tarflow_jax && "
  run_or_print tar -czf "${TMPDIR:-/tmp}/$archive" --exclude=./.git --exclude=./runs \
    --exclude=./.venv --exclude=./venv --exclude=./.data --exclude='./.*_cache' -C "$root" . &&
    on_hosts scp "${TMPDIR:-/tmp}/$archive" "$name:" && on_hosts_script setup
}

forget() {
  run_or_print gcloud compute tpus queued-resources delete "$name" --zone="$ZONE" --force --quiet
}

delete() {
  # Whichever it was made by. The first says so if there is no such request.
  if is_dry; then
    printf '%s || ' "$(forget)"
  elif forget; then
    return
  fi
  run_or_print gcloud compute tpus tpu-vm delete "$name" --zone="$ZONE" --quiet
}

# What became of the request: MISSING if there is none, UNKNOWN without an answer.
state() {
  local answer
  if answer=$(run_or_print gcloud compute tpus queued-resources describe "$name" --zone="$ZONE" \
    --format='value(state.state)' 2>&1); then
    is_dry || answer=$(grep -xE '[A-Z_]+' <<<"$answer") || answer=UNKNOWN
    printf '%s\n' "$answer"
  else
    case $answer in
      *NOT_FOUND* | *'not found'*) echo MISSING ;;
      *) printf '%s\n' "$answer" >&2 && echo UNKNOWN ;;
    esac
  fi
}

watch() {
  local now last='' is_set_up='' status failures=0 pause
  if is_dry; then
    state && queue && setup && on_hosts_script run "$@"
    return
  fi
  while true; do
    now=$(state) status=0
    [[ $now == "$last" ]] || printf '%s: %s is %s\n' "${0##*/}" "$name" "$now" >&2
    last=$now
    [[ $now == ACTIVE ]] || is_set_up=''
    case $now in
      ACTIVE)
        [[ -n $is_set_up ]] || setup || status=$?
        if ((status == 0)); then
          is_set_up=1 SECONDS=0
          on_hosts_script run "$@" || status=$?
          ((status != 0 && status != 2)) || return "$status"
          ((SECONDS < 600 && status != 143)) || failures=0
          ((status != 143)) || status=0 # it was told to stop, and saved itself
        fi
        ;;
      MISSING) queue || status=$? ;;
      SUSPENDED) # taken away, as spot slices are
        failures=0
        forget || status=$?
        ;;
      FAILED)
        forget || true
        status=1
        ;;
    esac
    pause=$POLL
    if ((status != 0)); then
      failures=$((failures + 1))
      pause=$((POLL << failures))
      printf '%s: failure %d of %d, status %d\n' "${0##*/}" $failures "$TRIES" $status >&2
      ((failures < TRIES)) || return $status
    fi
    sleep $((pause < 600 || POLL > 600 ? pause : 600))
  done
}

case ${1-} in
  -h | --help) manual && exit ;;
  '') manual && exit 2 ;;
  create | queue | setup | stop | delete) (($# == 1)) || fail "$1 takes no flags; got '$2'." ;;
  run | watch) (($# > 1)) || fail "$1 needs flags of the run: --config=FILE --workdir=DIR." ;;
  *) fail "'$1' is none of create, queue, setup, run, watch, stop, delete." ;;
esac
need "NAME=tarflow ZONE=us-east5-b TYPE=v6e-64 $0 $1" NAME ZONE TYPE
# shellcheck disable=SC2153
name=$NAME slices=${NUM_SLICES:-1} before='' POLL=${POLL:-30} TRIES=${TRIES:-10}
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
  fail "NAME must begin with a letter, have only a-z, 0-9 and -, and not end in -; got '$name'."
whole_number NUM_SLICES "$slices" 1
whole_number POLL "$POLL" 0
whole_number TRIES "$TRIES" 1
((TRIES <= 30)) || fail "TRIES must be at most 30; got $TRIES."
read -r -a flags <<<"${GCLOUD_FLAGS-}"
[[ ${SPOT:-0} == 0 ]] || flags+=(--spot)
version=${RUNTIME:-$(runtime)}
case $1 in
  run | stop) on_hosts_script "$@" ;;
  *) "$@" ;;
esac
