#!/usr/bin/env bash
# Watches the run until it has finished. Starts it again, from its last copy in the bucket, when it was stopped to be
# continued (exit code 75 of `mft run`), when its worker is silent, or when Google took the TPU back. In the last case a
# new TPU is requested without asking, which is billed like the first. It does not matter if this script is stopped and
# started again.
#
# Usage: ./watch.sh [--delete-when-done]
#   --delete-when-done   delete the TPU, without asking, as soon as the run has finished and is in the bucket
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

DELETE=''
option() {
  [[ $1 == --delete-when-done ]] || return 1
  DELETE=yes
}

RESTARTS=0
# Counts a restart. Fails if there were too many without a report of progress.
count_restart() {
  RESTARTS=$((RESTARTS + 1))
  ((RESTARTS <= MAX_RESTARTS)) && return 0
  read_state
  warn_of_bill
  fail "the run was started $MAX_RESTARTS times without progress: read its log with 'gcloud storage cat $STORE/log.txt'."
}

sibling() { "$SCRIPTS/$1" --env "$ENV_FILE" ${DRY_RUN:+--dry-run}; }

start_again() {
  count_restart
  say "$(date '+%H:%M:%S') $1: starting the run again"
  sibling run.sh || warn "It was not started; the next try is in $POLL_SECONDS seconds."
}

# Requests a new TPU in place of one that was taken back.
replace_tpu() {
  count_restart
  say "$(date '+%H:%M:%S') the TPU $NAME is $STATE: requesting a new one, $(price)"
  if ! delete_tpu; then
    warn_of_bill
    fail "the old request $NAME could not be removed ($(last_error)): run ./delete.sh, then ./create.sh and ./watch.sh."
  fi
  if ! request_tpu; then
    local advice
    advice=$(remedy)
    read_state
    warn_of_bill
    fail "no new TPU could be requested: $advice, then ./create.sh and ./watch.sh. The run is in $STORE."
  fi
  [[ -z $DRY_RUN ]] || ASSUMED_STATE=ACTIVE
  local ended=
  wait_until_active || ended=yes
  trap stop INT TERM
  [[ -z $ended ]] || return 0 # taken back again, or never granted; the next look sees it
  sibling setup.sh || { warn "The next try is in $POLL_SECONDS seconds." && return 0; }
  sibling run.sh || warn "It was not started; the next try is in $POLL_SECONDS seconds."
}

finish() {
  say "The run has finished. Next: ./fetch.sh"
  if [[ -n $DELETE ]]; then
    delete_tpu && say "The TPU $NAME has been deleted." && exit 0
    warn_of_bill
    fail "it could not be confirmed that the TPU $NAME is deleted ($(last_error)): run ./delete.sh."
  fi
  warn_of_bill
  exit 0
}

look_at_run() {
  local before=${SEEN:-} silent
  read_status
  SEEN="$STATUS $CODE"
  [[ $SEEN == "$before" ]] || say "$(date '+%H:%M:%S') the run $RUN_NAME is $STATUS"
  case "$STATUS $CODE" in
    'stopped 0') finish ;;
    'stopped 75' | 'stopped 143') start_again "the run was stopped to be continued" ;;
    stopped*)
      gcloud storage cat "$STORE/log.txt" | tail -n 20 >&2 || true
      warn_of_bill
      fail "the run has failed with exit code $CODE, see the end of its log above: mend it, then ./run.sh and ./watch.sh."
      ;;
    never*)
      warn_of_bill
      fail "the run $RUN_NAME was never started: run ./run.sh first."
      ;;
    unknown*) warn "The status of the run cannot be read ($(last_error)); the next try is in $POLL_SECONDS seconds." ;;
    *)
      [[ $STATUS != running ]] || RESTARTS=0
      silent=$(($(date +%s) - REPORTED))
      ((silent <= SILENT_SECONDS)) || start_again "the worker has not reported for $silent seconds"
      ;;
  esac
}

stop() {
  warn "Stopped watching. The run goes on without being watched."
  warn_of_bill
  exit 130
}

read_options "$@"
if [[ -n $DRY_RUN ]]; then
  read_state
  read_status
  say "# If the TPU was taken back:"
  ASSUMED_STATE=SUSPENDED
  STATE=SUSPENDED
  replace_tpu
  exit 0
fi
STATE=UNKNOWN
trap stop INT TERM
while true; do
  read_state
  case $STATE in
    ACTIVE) look_at_run ;;
    SUSPENDED | FAILED)
      read_status # a finished run needs no new TPU
      if [[ "$STATUS $CODE" == 'stopped 0' ]]; then finish; else replace_tpu; fi
      ;;
    MISSING) fail "there is no TPU $NAME in $ZONE: run ./create.sh, ./setup.sh and ./run.sh first." ;;
    UNKNOWN) warn "The state of the TPU $NAME cannot be read ($(last_error)); the next try is in $POLL_SECONDS seconds." ;;
    *) say "$(date '+%H:%M:%S') the TPU $NAME is $STATE" ;;
  esac
  sleep "$POLL_SECONDS"
done
