#!/usr/bin/env bash
# Requests the TPU of tpu.env and waits until it is ready. Creates the bucket of the run if it is missing. Asks before
# anything is requested. If the request exists already, only waits for it.
#
# What a run needs and costs, before anything is requested: mft plan CONFIG.yaml --topology v5e-8
#
# Usage: ./create.sh [--yes] [--no-wait]
#   --yes        do not ask
#   --no-wait    do not wait until the TPU is ready
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

YES='' NO_WAIT=''
option() {
  case $1 in
    --yes) YES=yes ;;
    --no-wait) NO_WAIT=yes ;;
    *) return 1 ;;
  esac
}

confirm() {
  say "A $TPU_TYPE ($CHIPS chips) in $ZONE of the project $PROJECT costs $(price), from when it is granted until ./delete.sh."
  [[ -z $YES && -z $DRY_RUN ]] || return 0
  local answer=
  read -r -p "Request it? [y/N] " answer || true
  [[ $answer == [yY]* ]] || fail "nothing was requested."
}

prepare_project() {
  run gcloud services enable tpu.googleapis.com --project="$PROJECT" ||
    fail "the Cloud TPU API of $PROJECT cannot be enabled: $(remedy). Nothing was requested."
  local bucket
  bucket=gs://$(cut -d/ -f3 <<<"$BUCKET")
  if [[ -n $DRY_RUN ]]; then
    show gcloud storage buckets describe "$bucket" --project="$PROJECT"
  elif ask_gcloud storage buckets describe "$bucket" --project="$PROJECT" >/dev/null; then
    return 0
  elif ! is_missing; then
    fail "the bucket $bucket cannot be read ($(last_error)): $(remedy). Nothing was requested."
  fi
  run gcloud storage buckets create "$bucket" --project="$PROJECT" --location="${ZONE%-*}" --uniform-bucket-level-access ||
    fail "the bucket $bucket cannot be created: $(remedy), or give another name as BUCKET. Nothing was requested."
}

request() {
  trap 'STATE=UNKNOWN; warn_of_bill; exit 130' INT TERM
  request_tpu && return 0
  local advice
  advice=$(remedy)
  read_state
  warn_of_bill
  [[ $STATE != MISSING ]] || fail "the TPU was not requested, and nothing is billed: $advice."
  fail "the request for the TPU failed: $advice."
}

ASSUMED_STATE=MISSING # in a dry run
read_options "$@"
read_state
case $STATE in
  MISSING)
    confirm
    prepare_project
    request
    ;;
  UNKNOWN) fail "the state of the TPU $NAME cannot be read ($(last_error)): $(remedy). Nothing was requested." ;;
  SUSPENDED | FAILED) fail "there is an old request $NAME that is $STATE: remove it with ./delete.sh, then run ./create.sh again." ;;
  *) say "The TPU $NAME has been requested before; it is $STATE." ;;
esac
ASSUMED_STATE=ACTIVE
if [[ -n $NO_WAIT ]]; then
  [[ -n $DRY_RUN ]] || read_state
  warn_of_bill
  exit 0
fi
if ! wait_until_active; then
  [[ $STATE == MISSING ]] || detail=" ($(ask_gcloud compute tpus queued-resources describe "$NAME" --format='value(state)' "${WHERE[@]}" || true))"
  fail "the request for the TPU $NAME has ended as $STATE${detail:-}; nothing is billed: remove it with ./delete.sh, and try another ZONE or TPU_TYPE, or SPOT=no."
fi
[[ -n $DRY_RUN ]] || warn_of_bill
say "Next: ./setup.sh"
