#!/usr/bin/env bash
# Starts the run of tpu.env on every worker of the TPU, or continues it from the last copy in the bucket. The run goes on
# when this computer is switched off. The worker copies it to BUCKET/RUN_NAME, with its log; several workers work there, and
# copy their logs. A run that is going on already is not started a second time.
#
# Usage: ./run.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

option() { return 1; }

put() {
  local advice
  run gcloud storage cp "$@" && return 0
  advice=$(remedy)
  warn_of_bill
  fail "$STORE cannot be written: $advice."
}

read_options "$@"
require_active
failed="the run was not started on every worker of $NAME (if mft_jax is not installed there, ./setup.sh comes first)"
settings=$(mktemp -d)
trap 'rm -rf "$settings" "$ERRORS"' EXIT
declare -p STORE RUN_NAME SYNC_SECONDS SEVERAL_HOSTS OPTIONS >"$settings/run.env"
say "starting 0 $(date +%s)" >"$settings/status"
read_status
if [[ $STATUS == running ]] && (($(date +%s) - REPORTED <= SILENT_SECONDS)); then
  said="The run $RUN_NAME is going on; changes to $CONFIG count when it is started again."
else
  said="The run $RUN_NAME has been started."
  put "$CONFIG" "$STORE/config.yaml"
  put "$settings/status" "$STORE/status"
fi
on_every_worker "$failed" scp "$settings/run.env" "$NAME:mft-run.env"
on_every_worker "$failed" ssh "$NAME" --command='bash mft/tpu_scripts/worker_run.sh --detach'
say "$said Next: ./watch.sh, which also starts it again when the TPU was taken back."
warn_of_bill
