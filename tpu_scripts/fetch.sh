#!/usr/bin/env bash
# Copies the run from the bucket to this computer, finished or not. It needs no TPU, and can be repeated: only what is new
# is copied.
#
# Usage: ./fetch.sh [--to=DIRECTORY]
#   --to=DIRECTORY   the run directory on this computer; without it, runs/RUN_NAME beside this folder
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

TO=''
option() {
  [[ $1 == --to=?* ]] || return 1
  TO=${1#--to=}
}

read_options "$@"
TO=${TO:-$ROOT/runs/$RUN_NAME}
read_status
case $STATUS in
  never) fail "there is no run $RUN_NAME in $BUCKET: start it with ./run.sh." ;;
  unknown) fail "$STORE cannot be read ($(last_error)): $(remedy)." ;;
esac
run mkdir -p "$TO"
run gcloud storage rsync --recursive "$STORE/run" "$TO" || fail "$STORE/run was not copied as a whole: $(remedy)."
run gcloud storage cp "$STORE/log.txt" "$TO.log.txt" || warn "There is no log in $STORE yet."
if [[ $STATUS == stopped ]]; then ended="ended with exit code $CODE"; else ended="had not ended"; fi
read_state
warn_of_bill
say "The run is in $TO. When it was copied, it $ended. Next: mft status $TO"
