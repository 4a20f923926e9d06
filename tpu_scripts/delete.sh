#!/usr/bin/env bash
# Deletes the TPU, or withdraws the request for it, which ends its cost. Always asks. Then looks whether it is gone. The
# bucket, and the run in it, stay.
#
# Usage: ./delete.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

option() { return 1; }

read_options "$@"
read_state
[[ $STATE != MISSING ]] || { say "There is no TPU $NAME in $ZONE of $PROJECT, so nothing of this name is billed there." && exit 0; }
read_status
[[ -z $DRY_RUN ]] || STATUS=
case "$STATUS $CODE" in
  ' '*) ;; # a dry run
  'stopped 0') say "The run $RUN_NAME has finished and is in $STORE." ;;
  never*) say "The run $RUN_NAME was never started." ;;
  unknown*) warn "It cannot be read whether the run $RUN_NAME has finished ($(last_error))." ;;
  *) warn "The run $RUN_NAME has NOT finished. What was copied to $STORE until now is kept, and can be continued." ;;
esac
if [[ -z $DRY_RUN ]]; then
  answer=
  read -r -p "Delete the TPU $NAME ($TPU_TYPE in $ZONE, $STATE)? [y/N] " answer || true
  [[ $answer == [yY]* ]] || { warn_of_bill && fail "nothing was deleted."; }
fi
trap 'STATE=UNKNOWN; warn_of_bill; exit 130' INT TERM
if ! delete_tpu; then
  warn_of_bill
  fail "it could not be confirmed that the TPU $NAME is deleted; it is $STATE ($(last_error)): run ./delete.sh again."
fi
[[ -n $DRY_RUN ]] || say "The TPU $NAME is deleted and costs nothing any more. The bucket is still billed for what it holds: gcloud storage rm --recursive $STORE"
