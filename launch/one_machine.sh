#!/usr/bin/env bash
# Several processes on this machine, as if each were a host of its own.
#
#   launch/one_machine.sh N FLAGS
#
# runs python -m tarflow_jax.main FLAGS N times, with the flags that bring them together. Each sees
# one GPU: of CUDA_VISIBLE_DEVICES where that is set, else 0 to N-1. On CPUs: JAX_PLATFORMS=cpu.
#
# Process 0 writes here, the others into LOGS/process_I.log. All get SIGTERM and Ctrl-C. When
# one fails, the others have GRACE seconds to end by themselves if it was stopped by a signal and so
# saves itself, else 5; then they are ended. The exit status is the first that was not 0.
#
# Settings: PORT (default: a free one), LOGS (default: a folder below TMPDIR named after the
# port), GRACE=120; DRY_RUN=1 prints the commands and runs none.
#
#   launch/one_machine.sh 2 --config=configs/digits.py --workdir=runs/digits
set -euo pipefail
# shellcheck disable=SC1091
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case ${1-} in
  -h | --help) manual && exit ;;
  '') manual && exit 2 ;;
esac
whole_number N "$1" 1
count=$1
shift
(($# > 0)) || fail "there are no flags of the run, such as --config=FILE --workdir=DIR."
GRACE=${GRACE:-120}
whole_number GRACE "$GRACE" 0
visible=${CUDA_VISIBLE_DEVICES-$(seq -s , 0 $((count - 1)))}
IFS=, read -r -a gpus <<<"${visible// /}"
((${#gpus[@]} == 0 || ${#gpus[@]} >= count)) ||
  fail "CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES has no GPU for each of $count processes."
PORT=${PORT:-$(python -c 'import socket
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    print(free.getsockname()[1])')}
whole_number PORT "$PORT" 1
((PORT < 65536)) || fail "PORT must be below 65536; got '$PORT'."
LOGS=${LOGS:-${TMPDIR:-/tmp}/tarflow_jax-$PORT}

command_of() { # process I
  command=(env "CUDA_VISIBLE_DEVICES=${gpus[$1]-}" python -m tarflow_jax.main "${@:2}"
    "--coordinator=127.0.0.1:$PORT" "--num_processes=$count" "--process_id=$1")
}

((count == 1)) || run_or_print mkdir -p "$LOGS"
if is_dry; then
  for ((i = 0; i < count; i++)); do
    command_of $i "$@"
    log=''
    ((i == 0)) || log=" >$(quoted "$LOGS/process_$i.log") 2>&1"
    printf '%s%s &\n' "$(quoted "${command[@]}")" "$log"
  done
  exit
fi

# signal_all SIGNAL: to the processes that have not ended.
signal_all() {
  local i
  for ((i = 0; i < count; i++)); do
    [[ -n ${ended[i]} ]] || kill "-$1" "${pids[i]}" 2>/dev/null || true
  done
}

# A signal is kept until all have started.
pending_signal=''
trap 'pending_signal=TERM' TERM HUP
trap 'pending_signal=INT' INT
# Each gets a process group of its own: Ctrl-C reaches them once, from here.
set -m
pids=() ended=()
for ((i = 0; i < count; i++)); do
  command_of $i "$@"
  if ((i == 0)); then
    "${command[@]}" </dev/null &
  else
    "${command[@]}" </dev/null >"$LOGS/process_$i.log" 2>&1 &
  fi
  pids+=($!) ended+=('')
done
set +m
trap 'signal_all TERM' TERM HUP
trap 'signal_all INT' INT
[[ -z $pending_signal ]] || signal_all "$pending_signal"
((count == 1)) || printf '%s: processes 1 to %d write to %s\n' "${0##*/}" $((count - 1)) "$LOGS" >&2

left=$count first='' deadline='' sent=''
while ((left > 0)); do
  for ((i = 0; i < count; i++)); do
    if [[ -z ${ended[i]} ]] && ! kill -0 "${pids[i]}" 2>/dev/null; then
      status=0 ended[i]=1 left=$((left - 1))
      wait "${pids[i]}" || status=$?
      if ((status != 0)) && [[ -z $first ]]; then
        first=$status
        printf '%s: process %d ended with status %d\n' "${0##*/}" $i "$status" >&2
        ((i == 0)) || tail -n 20 "$LOGS/process_$i.log" >&2 || true
        deadline=$((SECONDS + (GRACE < 5 ? GRACE : 5)))
        case $status in 130 | 143) deadline=$((SECONDS + GRACE)) ;; esac
      fi
    fi
  done
  if [[ -n $deadline ]] && ((SECONDS >= deadline)); then
    if [[ -z $sent ]]; then sent=TERM; else sent=KILL; fi
    signal_all $sent
    deadline=$((SECONDS + (GRACE < 10 ? GRACE : 10))) # until the KILL
  fi
  ((left == 0)) || sleep 0.1 || true # Ctrl-C ends it too
done
exit "${first:-0}"
