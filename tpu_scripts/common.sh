# shellcheck shell=bash disable=SC2034
# Sourced by the scripts in this folder: options, settings, calls of gcloud, and what is known of the TPU. (SC2034: its
# variables are used there.)
set -euo pipefail

SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$SCRIPTS")
DRY_RUN=
ENV_FILE=$SCRIPTS/tpu.env
ERRORS=$(mktemp) # what gcloud said last on its standard error
trap 'rm -f "$ERRORS"' EXIT

say() { printf '%s\n' "$*"; }
warn() { printf '%s\n' "$*" >&2; }
fail() {
  warn "$(basename "$0"): $*"
  exit 1
}

# The comment at the top of the script, which is its help text.
usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
  cat <<'EOF'

Options:
  --env FILE   settings; without it, tpu.env beside this script
  --dry-run    print every command, run none
  --help       this text
EOF
}

# Reads the options that all scripts have, and the settings. What is left goes to `option` of the script, which returns 1
# for an option that it does not know.
read_options() {
  while (($#)); do
    case $1 in
      --help | -h) usage && exit 0 ;;
      --dry-run) DRY_RUN=yes ;;
      --env)
        (($# > 1)) || fail "--env needs a file: give --env FILE."
        ENV_FILE=$2
        shift
        ;;
      *) option "$1" || fail "there is no option $1: see $0 --help." ;;
    esac
    shift
  done
  read_settings
}

read_settings() {
  [[ -f $ENV_FILE ]] || fail "there is no file $ENV_FILE: copy $SCRIPTS/tpu.env and edit it."
  [[ $ENV_FILE == */* ]] || ENV_FILE=./$ENV_FILE # or bash looks for it among the commands
  local error
  error=$(bash -n "$ENV_FILE" 2>&1) || fail "$ENV_FILE cannot be read by bash (${error%%$'\n'*}): check its quotes."
  ! grep -q $'\r' "$ENV_FILE" || fail "$ENV_FILE has the line ends of Windows: convert it, for example with dos2unix."
  # shellcheck source=tpu.env
  source "$ENV_FILE"
  local setting
  for setting in PROJECT ZONE TPU_TYPE SPOT VALID_UNTIL NAME CONFIG RUN_NAME SYNC_SECONDS POLL_SECONDS SILENT_SECONDS \
    MAX_RESTARTS; do
    [[ -n ${!setting:-} ]] || fail "$setting is not set: edit $ENV_FILE."
  done
  [[ ${BUCKET:-} =~ ^gs://[a-z0-9][a-z0-9._-]+(/[^[:space:]]+)?$ ]] ||
    fail "BUCKET is '${BUCKET:-}', expected gs:// and the name of a bucket: edit $ENV_FILE."
  [[ $RUN_NAME =~ ^[A-Za-z0-9_.-]+$ && $RUN_NAME != .* ]] ||
    fail "RUN_NAME is '$RUN_NAME', expected letters, digits, '_', '-' and '.': edit $ENV_FILE."
  [[ $SPOT == yes || $SPOT == no ]] || fail "SPOT is '$SPOT', expected yes or no: edit $ENV_FILE."
  for setting in SYNC_SECONDS SILENT_SECONDS; do
    [[ ${!setting} =~ ^[1-9][0-9]{0,8}$ ]] || fail "$setting is '${!setting}', expected seconds, at least 1: edit $ENV_FILE."
  done
  [[ $POLL_SECONDS =~ ^[0-9]{1,9}(\.[0-9]+)?$ && $POLL_SECONDS =~ [1-9] ]] ||
    fail "POLL_SECONDS is '$POLL_SECONDS', expected seconds, more than 0: edit $ENV_FILE."
  ((SILENT_SECONDS >= 10 * SYNC_SECONDS)) ||
    fail "SILENT_SECONDS is $SILENT_SECONDS, expected at least ten times SYNC_SECONDS, $((10 * SYNC_SECONDS)): edit $ENV_FILE."
  [[ $MAX_RESTARTS =~ ^(0|[1-9][0-9]{0,8})$ ]] || fail "MAX_RESTARTS is '$MAX_RESTARTS', expected a number: edit $ENV_FILE."
  [[ $VALID_UNTIL =~ ^[1-9][0-9]*[smhd]$ ]] ||
    fail "VALID_UNTIL is '$VALID_UNTIL', expected a time such as 30m, 6h or 2d: edit $ENV_FILE."
  declare -p OPTIONS >/dev/null 2>&1 || OPTIONS=()
  [[ $(declare -p OPTIONS) == 'declare -a'* ]] ||
    fail "OPTIONS is not a list: write it in parentheses, such as OPTIONS=(--iterations 3), in $ENV_FILE."
  [[ $CONFIG == /* ]] || CONFIG=$ROOT/$CONFIG
  [[ -f $CONFIG ]] || fail "there is no configuration $CONFIG: edit CONFIG in $ENV_FILE."
  read_tpu_type
  BUCKET=${BUCKET%/}
  STORE=$BUCKET/$RUN_NAME
  WHERE=(--project="$PROJECT" --zone="$ZONE")
  [[ -n $DRY_RUN ]] || command -v gcloud >/dev/null ||
    fail "there is no gcloud: install the Google Cloud CLI (https://cloud.google.com/sdk/docs/install), then 'gcloud auth login'."
}

# Google's name of the TPU, the software that its machines start with, its chips, cents per chip-hour on demand, and whether
# it has several hosts. Software: https://cloud.google.com/tpu/docs/runtimes, the same in November 2026. Prices: list prices of
# US regions of that month; see https://cloud.google.com/tpu/pricing for yours.
read_tpu_type() {
  local size=${TPU_TYPE#*-} most_on_a_host=8
  case $TPU_TYPE in
    v5e-1 | v5e-4 | v5e-8 | v5e-16 | v5e-32 | v5e-64 | v5e-128 | v5e-256)
      ACCELERATOR=v5litepod-$size RUNTIME=v2-alpha-tpuv5-lite CHIPS=$size CENTS=120
      ;;
    v6e-1 | v6e-4 | v6e-8 | v6e-16 | v6e-32 | v6e-64 | v6e-128 | v6e-256)
      ACCELERATOR=v6e-$size RUNTIME=v2-alpha-tpuv6e CHIPS=$size CENTS=270
      ;;
    v5p-8 | v5p-16 | v5p-32 | v5p-64 | v5p-128 | v5p-256 | v5p-512 | v5p-1024)
      ACCELERATOR=v5p-$size RUNTIME=v2-alpha-tpuv5 CHIPS=$((size / 2)) CENTS=420 most_on_a_host=4
      ;;
    *) fail "TPU_TYPE is '$TPU_TYPE', expected v5e-N or v6e-N with N = 1, 4, 8, 16, 32, 64, 128 or 256 chips, or v5p-N with N = 8, 16, 32, ..., 1024 cores: edit $ENV_FILE." ;;
  esac
  if ((CHIPS > most_on_a_host)); then SEVERAL_HOSTS=yes; else SEVERAL_HOSTS=no; fi
}

price() {
  local cents=$((CHIPS * CENTS))
  printf 'about $%d.%02d an hour on demand (list price of November 2026)' $((cents / 100)) $((cents % 100))
  [[ $SPOT == no ]] || printf ', less as spot capacity'
}

# Prints a command as it can be typed into a shell.
show() { printf '%s\n' "$(printf '%q ' "$@" | sed 's/ $//')"; }

# Runs a command, or only prints it. What it says on its standard error is shown, and kept in $ERRORS.
run() {
  if [[ -n $DRY_RUN ]]; then
    show "$@"
    return
  fi
  { "$@" 2>&1 >&3 3>&- | tee "$ERRORS" >&2; } 3>&1
}

# Runs a command that only asks, prints its answer, and keeps its standard error in $ERRORS.
ask_gcloud() { gcloud "$@" 2>"$ERRORS"; }

tpu() { run gcloud compute tpus "$@" "${WHERE[@]}"; }

# The last error of gcloud in one line.
last_error() { tr '\n' ' ' <"$ERRORS" | sed 's/  */ /g; s/ $//'; }

# Whether the last error says that the thing does not exist, in contrast to a network or a permission that is missing.
is_missing() { grep -qiE 'NOT_FOUND|not found|does not exist' "$ERRORS"; }

# What to do about the last error of gcloud.
remedy() {
  if grep -qiE 'quota|RESOURCE_EXHAUSTED' "$ERRORS"; then
    local kind="on-demand"
    [[ $SPOT == no ]] || kind="preemptible (spot)"
    say "ask for more $kind TPU quota in $ZONE at https://console.cloud.google.com/iam-admin/quotas?project=$PROJECT, or choose another ZONE or TPU_TYPE"
  elif grep -qiE 'PERMISSION_DENIED|forbidden|does not have permission' "$ERRORS"; then
    say "your account needs the roles TPU Admin, Service Account User and Storage Admin in the project $PROJECT"
  elif grep -qiE 'login|credential|UNAUTHENTICATED' "$ERRORS"; then
    say "log in with 'gcloud auth login'"
  else
    say "mend that and run the same command again"
  fi
}

# Sets STATE to the state of the request for the TPU (ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ...), MISSING if there is
# none, UNKNOWN if it cannot be asked. A spot TPU that was taken back while its request still says ACTIVE is SUSPENDED.
read_state() {
  local node
  if [[ -n $DRY_RUN ]]; then
    show gcloud compute tpus queued-resources describe "$NAME" --format='value(state.state)' "${WHERE[@]}"
    STATE=${ASSUMED_STATE:-ACTIVE}
  elif STATE=$(ask_gcloud compute tpus queued-resources describe "$NAME" --format='value(state.state)' "${WHERE[@]}"); then
    [[ -n $STATE ]] || STATE=UNKNOWN
    if [[ $STATE == ACTIVE ]] &&
      node=$(ask_gcloud compute tpus tpu-vm describe "$NAME" --format='value(state)' "${WHERE[@]}") &&
      [[ $node == PREEMPTED || $node == TERMINATED ]]; then
      STATE=SUSPENDED
    fi
  elif is_missing; then
    STATE=MISSING
  else
    STATE=UNKNOWN
  fi
}

# Whether a TPU in this state costs money, or may soon. UNKNOWN counts: better a warning too many.
may_be_billed() { [[ $STATE != MISSING && $STATE != SUSPENDED && $STATE != FAILED ]]; }

# To be said whenever a script ends and the TPU stays.
warn_of_bill() {
  [[ -z $DRY_RUN ]] || return 0
  if [[ $STATE == UNKNOWN ]]; then
    warn "It is NOT KNOWN whether the TPU $NAME exists. If it does, it is BILLED, $(price): look with 'gcloud compute tpus queued-resources list ${WHERE[*]}' or at https://console.cloud.google.com/compute/tpus?project=$PROJECT."
  elif may_be_billed; then
    warn "The TPU $NAME is $STATE and is BILLED while it runs, $(price). To end that: ./delete.sh"
  fi
}

# Fails unless the TPU is there and ready. From then on, Ctrl-C too tells what the TPU costs before it ends the script.
require_active() {
  trap 'warn_of_bill; exit 130' INT TERM
  read_state
  case $STATE in
    ACTIVE) ;;
    MISSING) fail "there is no TPU $NAME in $ZONE: run ./create.sh first." ;;
    UNKNOWN) fail "the state of the TPU $NAME cannot be read ($(last_error)): $(remedy)." ;;
    SUSPENDED | FAILED) fail "the TPU $NAME is $STATE: it was taken back or never granted. ./watch.sh asks for a new one and continues the run; ./delete.sh removes the request." ;;
    *) fail "the TPU $NAME is $STATE, not yet ACTIVE: wait with ./create.sh." ;;
  esac
}

# Calls tpu-vm ssh or scp for all workers. Fails with the sentence of its first argument if one of them fails.
on_every_worker() {
  local sentence=$1 advice
  shift
  tpu tpu-vm "$@" --worker=all && return 0
  advice=$(remedy)
  warn_of_bill
  fail "$sentence, see above: $advice."
}

# Sets STATUS to what the worker last wrote to the bucket: "starting", "running" after each copy of the run, or "stopped";
# and CODE and REPORTED to the exit code of `mft run` and the time in seconds. STATUS is "never" if the run was never
# started, and "unknown" if the bucket cannot be read.
read_status() {
  local line
  if [[ -n $DRY_RUN ]]; then
    show gcloud storage cat "$STORE/status"
    line='running 0 0'
  elif ! line=$(ask_gcloud storage cat "$STORE/status"); then
    line='unknown 0 0'
    ! grep -qiE 'matched no objects|NOT_FOUND|not found' "$ERRORS" || line='never 0 0'
  fi
  read -r STATUS CODE REPORTED <<<"$line"
}

# Requests the TPU and returns at once. The caller handles an error.
request_tpu() {
  local spot=()
  [[ $SPOT == no ]] || spot=(--spot)
  tpu queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" \
    --scopes=https://www.googleapis.com/auth/cloud-platform --valid-until-duration="$VALID_UNTIL" ${spot[@]+"${spot[@]}"} # an empty array is an error in old versions of bash
}

# Waits until the request is ACTIVE (returns 0), or has ended without a TPU (returns 1).
wait_until_active() {
  local before=
  trap 'warn "Stopped waiting. The request for the TPU $NAME stays, and is billed as soon as it is granted: ./create.sh waits again, ./delete.sh withdraws it."; exit 130' INT TERM
  while true; do
    read_state
    [[ $STATE == "$before" ]] || say "$(date '+%H:%M:%S') the TPU $NAME is $STATE"
    before=$STATE
    case $STATE in
      ACTIVE) break ;;
      MISSING | FAILED | SUSPENDED) return 1 ;;
    esac
    sleep "$POLL_SECONDS"
  done
  trap - INT TERM
}

# Deletes the request and its TPU, and looks whether both are gone. Returns 1 if that cannot be confirmed.
delete_tpu() {
  tpu queued-resources delete "$NAME" --force --quiet || true
  [[ -z $DRY_RUN ]] || return 0
  local attempt
  for attempt in 1 2 3 4 5; do
    read_state
    [[ $STATE != MISSING ]] || return 0
    ((attempt == 5)) || sleep "$POLL_SECONDS"
  done
  return 1
}
