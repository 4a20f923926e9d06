#!/usr/bin/env bash
# Runs `mft run` on this worker until it ends, and keeps a copy of the run in the bucket. run.sh calls it on the TPU, with
# --detach, and SkyPilot without. The exit code is that of `mft run`. Several workers run it together, in the bucket itself;
# then worker 0 reports, and log-1.txt, log-2.txt, ... are the logs of the others.
#
# STORE (gs://BUCKET/RUN_NAME) has config.yaml, run/ (the run directory), compiled/ (the compiled programs), log.txt and
# status. A new worker first fetches run/ and compiled/. The files of a copy may be of different moments, because the run
# goes on meanwhile and the machine may be taken away: `mft run` finds files that are missing or do not belong together by
# their checksums, and computes them again.
set -euo pipefail

# shellcheck source=/dev/null
[[ ! -f $HOME/mft-run.env ]] || source "$HOME/mft-run.env"
declare -p OPTIONS >/dev/null 2>&1 || OPTIONS=()
MFT=${MFT:-$HOME/mft-venv/bin/mft}
WORK=$HOME/mft-runs/$RUN_NAME
RUN=$WORK/run
COMPILED=$HOME/.cache/mft_jax/compiled
unset XDG_CACHE_HOME JAX_COMPILATION_CACHE_DIR # so that the compiled programs are there
mkdir -p "$WORK"

# The number of this worker, by the metadata of its machine.
worker_number() {
  curl --silent --fail --max-time 10 --header 'Metadata-Flavor: Google' \
    http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number
}

WORKER=0 LOG=log.txt WAIT=0
SEVERAL_HOSTS=${SEVERAL_HOSTS:-no}
((${SKYPILOT_NUM_NODES:-1} == 1)) || SEVERAL_HOSTS=yes
if [[ $SEVERAL_HOSTS == yes ]]; then
  WORKER=$(worker_number) || { echo "The number of this worker is not in the metadata of $(hostname): is it a Cloud TPU?" >&2 && exit 1; }
  ((WORKER == 0)) || LOG=log-$WORKER.txt
  RUN=$STORE/run
  export JAX_COMPILATION_CACHE_DIR=$STORE/compiled
  OPTIONS=(--distributed ${OPTIONS[@]+"${OPTIONS[@]}"})
  WAIT=60 # seconds: a worker that ended last may still be copying its log while the first is started again
fi

if [[ ${1:-} == --detach ]]; then
  if ! flock --wait "$WAIT" "$WORK/lock" true; then
    echo "The run $RUN_NAME is running already on $(hostname)."
    exit 0
  fi
  setsid nohup bash "$0" >>"$WORK/log.txt" 2>&1 </dev/null &
  echo "The run $RUN_NAME is starting on $(hostname)."
  exit 0
fi

exec 9>"$WORK/lock"
flock --nonblock 9 || { echo "The run $RUN_NAME is running already." && exit 1; }

report() { ((WORKER > 0)) || echo "$1 $2 $(date +%s)" | gcloud storage cp --quiet - "$STORE/status"; }

copy_log() { [[ ! -f $WORK/log.txt ]] || gcloud storage cp --quiet "$WORK/log.txt" "$STORE/$LOG"; }

# Fetches the run once to a new machine. If that fails, nothing is started: an empty run would overwrite the copy.
fetch_run() {
  gcloud storage cp --quiet "$STORE/config.yaml" "$WORK/config.yaml" || return 1
  [[ $SEVERAL_HOSTS == no && ! -d $RUN ]] || return 0
  rm -rf "$WORK/fetched"
  mkdir "$WORK/fetched"
  gcloud storage rsync --quiet --recursive "$STORE" "$WORK/fetched" || return 1 # it has config.yaml, so it is not empty
  mkdir -p "$WORK/fetched/run" "$WORK/fetched/compiled"
  [[ -d $COMPILED ]] || { mkdir -p "$(dirname "$COMPILED")" && mv "$WORK/fetched/compiled" "$COMPILED"; }
  mv "$WORK/fetched/run" "$RUN"
  rm -rf "$WORK/fetched"
}

# Copies, once, the files without which a directory is not a run or a grid. They must be in the bucket before the others,
# in case that a first copy is interrupted.
copy_beginnings() {
  local name
  while read -r name; do
    if ! grep -qxF "$name" "$WORK/begun" 2>/dev/null; then
      gcloud storage cp --quiet "$WORK/snapshot/$name" "$STORE/run/$name" </dev/null || return 1
      echo "$name" >>"$WORK/begun"
    fi
  done < <(find "$WORK/snapshot" \( -name config.yaml -o -name grid.json \) -printf '%P\n')
}

# Copies the run to the bucket. The run replaces its files as a whole, so a hard link to each of them is a copy of what
# was there. Linking is repeated if a file disappears meanwhile. JAX ignores compiled programs that are not whole.
copy_run() {
  if [[ $SEVERAL_HOSTS == yes ]]; then
    copy_log
    return
  fi
  (
    flock 8 # one copy at a time; a killed one keeps the lock until its gcloud has ended
    local attempt
    for attempt in 1 2 3 4 5; do
      rm -rf "$WORK/snapshot"
      cp -al "$RUN" "$WORK/snapshot" 2>/dev/null && break
      ((attempt < 5)) || exit 1
    done
    find "$WORK/snapshot" -depth \( -name '.*.tmp' -o -name '*.orbax-checkpoint-tmp*' -o -name run.lock \) \
      -exec rm -rf {} +
    copy_beginnings || exit 1
    gcloud storage rsync --quiet --recursive --delete-unmatched-destination-objects "$WORK/snapshot" "$STORE/run" || exit 1
    [[ ! -d $COMPILED ]] || gcloud storage rsync --quiet --recursive "$COMPILED" "$STORE/compiled" || true
    copy_log
  ) 8>"$WORK/copying"
}

copy_regularly() {
  while sleep "$SYNC_SECONDS"; do
    if copy_run && report running 0; then continue; fi
    echo "The run could not be copied to $STORE; the next try is in $SYNC_SECONDS seconds."
  done
}

if ! fetch_run; then
  echo "$STORE cannot be read, so nothing was started: check that the TPU's service account may read and write the bucket."
  report stopped 1 || true
  exit 1
fi
mft='' signalled=''
trap 'signalled=yes; [[ -z $mft ]] || kill -TERM "$mft" 2>/dev/null || true' TERM INT
"$MFT" run "$WORK/config.yaml" --run-dir "$RUN" "${OPTIONS[@]}" 9>&- &
mft=$!
[[ -z $signalled ]] || kill -TERM "$mft"
copy_regularly 9>&- &
copier=$!
while true; do
  signalled='' code=0
  wait "$mft" || code=$?
  [[ -n $signalled ]] || break # a signal interrupts `wait`, which then returns the code of the signal
done
kill "$copier" 2>/dev/null || true
copy_run || [[ $SEVERAL_HOSTS == yes ]] || { echo "The last copy of the run to $STORE failed; it is complete in $RUN on $(hostname)." && code=$((code ? code : 74)); }
report stopped "$code" || true
exit "$code"
