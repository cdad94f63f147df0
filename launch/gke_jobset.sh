#!/usr/bin/env bash
# TPU slices on GKE: one JobSet, a Job for each slice, a pod for each host.
#
#   NAME=... IMAGE=... TPU=... TOPOLOGY=... BUCKET=... launch/gke_jobset.sh FLAGS
#
# runs python -m tarflow_jax.main FLAGS --distributed=on in every pod. If a pod fails or is taken
# away, all are started again and resume from the workdir; exit status 2 (an invalid command) ends
# it.
#
# Settings: NAME of the JobSet; IMAGE with the project, its tpu extra and its configs installed;
#   TPU               v4, v5e, v5p, v6e or tpu7x
#   TOPOLOGY          of one slice, such as 4x8 or 2x2x4
#   CHIPS_PER_HOST    default: 4, or all of a smaller slice
#   NUM_SLICES=1      each in a node pool of its own
#   BUCKET or CLAIM   a bucket (Cloud Storage FUSE), or a PersistentVolumeClaim of many writers,
#   MOUNT=/data       and where it is mounted: the workdir must be there
#   SERVICE_ACCOUNT   the Kubernetes account that may use the bucket (default: default)
#   SPOT=1            on spot nodes
#   MAX_RESTARTS=100, GRACE=180 (seconds a pod has to save itself when it is told to go)
#   DRY_RUN=1         prints the command with its YAML and runs nothing
#
# To run the same again after its end: kubectl delete jobset NAME, then the same command.
#
#   NAME=digits IMAGE=eu.gcr.io/me/tarflow TPU=v6e TOPOLOGY=4x4 BUCKET=my-bucket \
#     launch/gke_jobset.sh --config=configs/digits.py --workdir=/data/digits
set -euo pipefail
# shellcheck disable=SC1091
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case ${1-} in
  -h | --help) manual && exit ;;
  '') manual && exit 2 ;;
esac
need "NAME=digits IMAGE=eu.gcr.io/me/tarflow TPU=v6e TOPOLOGY=4x4 BUCKET=my-bucket $0 \
--config=configs/digits.py --workdir=/data/digits" NAME IMAGE TPU TOPOLOGY
[[ $NAME =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
  fail "NAME must begin with a letter, have only a-z, 0-9 and -, and not end in -; got '$NAME'."
[[ -n ${BUCKET-} || -n ${CLAIM-} ]] ||
  fail "BUCKET or CLAIM must be set: what pods write elsewhere is lost with them."
[[ -z ${BUCKET-} || -z ${CLAIM-} ]] || fail "BUCKET and CLAIM are both set; one is mounted."
MOUNT=${MOUNT:-/data}
MOUNT=${MOUNT%/}
[[ $MOUNT == /?* ]] || fail "MOUNT must be a folder below /, such as /data; got '$MOUNT'."
for word in "$@" "$IMAGE" "$MOUNT" "${BUCKET-}" "${CLAIM-}" "${SERVICE_ACCOUNT-}"; do
  [[ $word != *[[:cntrl:]]* ]] || fail "a line break or tab cannot be passed on: $(quoted "$word")"
done
case "$(printf ' %s' "$@")" in
  *" --workdir=$MOUNT/"* | *" --workdir $MOUNT/"*) ;;
  *) fail "--workdir must be given, below $MOUNT, where ${BUCKET-}${CLAIM-} is mounted." ;;
esac
case $TPU in
  v4) accelerator=tpu-v4-podslice example=2x2x4 ;;
  v5e) accelerator=tpu-v5-lite-podslice example=4x8 ;;
  v5p) accelerator=tpu-v5p-slice example=2x2x4 ;;
  v6e) accelerator=tpu-v6e-slice example=4x8 ;;
  tpu7x) accelerator=tpu7x example=2x2x4 ;;
  *) fail "TPU must be v4, v5e, v5p, v6e or tpu7x; got '$TPU'." ;;
esac
number='[1-9][0-9]{0,3}'
[[ $TOPOLOGY =~ ^${example//[248]/$number}$ ]] ||
  fail "TOPOLOGY of $TPU must be of the form $example; got '$TOPOLOGY'."
chips=$((${TOPOLOGY//x/*}))
per_host=${CHIPS_PER_HOST:-$((chips < 4 ? chips : 4))}
whole_number CHIPS_PER_HOST "$per_host" 1
((chips % per_host == 0)) ||
  fail "TOPOLOGY=$TOPOLOGY has $chips chips, which $per_host on a host do not divide."
whole_number NUM_SLICES "${NUM_SLICES:-1}" 1
whole_number MAX_RESTARTS "${MAX_RESTARTS:-100}" 0
whole_number GRACE "${GRACE:-180}" 1

# Words as strings of YAML, separated by commas.
strings() {
  local word line=''
  for word; do
    word=${word//\\/\\\\}
    line="$line${line:+, }\"${word//\"/\\\"}\""
  done
  printf '%s\n' "$line"
}

jobset() {
  local spot='' annotations='' volume
  [[ ${SPOT:-0} == 0 ]] || spot=', cloud.google.com/gke-spot: "true"'
  if [[ -n ${BUCKET-} ]]; then
    annotations='gke-gcsfuse/volumes: "true"'
    # Checkpoints are renamed, and what one host renames must not be in another's cache.
    volume="csi: {driver: gcsfuse.csi.storage.gke.io, volumeAttributes: \
{bucketName: $(strings "$BUCKET"), \
mountOptions: \"implicit-dirs,rename-dir-limit=200000,metadata-cache:ttl-secs:0\"}}"
  else
    volume="persistentVolumeClaim: {claimName: $(strings "$CLAIM")}"
  fi
  cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $(strings "$NAME")
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: ${MAX_RESTARTS:-100}
    rules:
    - action: FailJobSet # for podFailurePolicy below: status 2. Otherwise all are restarted.
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: slice
    replicas: ${NUM_SLICES:-1}
    template:
      spec:
        parallelism: $((chips / per_host))
        completions: $((chips / per_host))
        backoffLimit: 0 # no pod is restarted alone
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes: {containerName: tarflow, operator: In, values: [2]}
        template:
          metadata:
            annotations: {$annotations}
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: ${GRACE:-180}
            serviceAccountName: $(strings "${SERVICE_ACCOUNT:-default}")
            nodeSelector: {cloud.google.com/gke-tpu-accelerator: $accelerator,
              cloud.google.com/gke-tpu-topology: $TOPOLOGY$spot}
            containers:
            - name: tarflow
              image: $(strings "$IMAGE")
              command: [python, -m, tarflow_jax.main]
              args: [$(strings "$@" --distributed=on)]
              resources:
                limits: {google.com/tpu: $per_host}
              volumeMounts:
              - {name: workdirs, mountPath: $(strings "$MOUNT")}
            volumes:
            - name: workdirs
              $volume
END
}

yaml=$(jobset "$@")
if is_dry; then
  printf '%s\n' "kubectl create -f - <<'END'" "$yaml" END
else
  # Not `apply`: it would say `unchanged` of a JobSet that has ended, and start nothing.
  printf '%s\n' "$yaml" | kubectl create -f -
fi
