#!/usr/bin/env bash
# Installs this copy of mft_jax on every worker of the TPU, and checks that JAX finds the chips, if there is one worker. It can
# be repeated, also with changed code, but not while the run goes on. A Hugging Face token in the environment variable HF_TOKEN, which gated
# models need, is copied to the workers too.
#
# Usage: ./setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

option() { return 1; }

read_options "$@"
require_active
failed="mft_jax was not installed on every worker of $NAME"
archive=$(mktemp -d)
trap 'rm -rf "$archive" "$ERRORS"' EXIT
run tar -czf "$archive/mft_jax.tgz" -C "$ROOT" --exclude=__pycache__ mft_jax configs tpu_scripts pyproject.toml README.md LICENSE
on_every_worker "$failed" scp "$archive/mft_jax.tgz" "$NAME:mft_jax.tgz"
if [[ -n ${HF_TOKEN:-} ]]; then
  (umask 077 && printf %s "$HF_TOKEN" >"$archive/hf_token") # a file, because others can see the words of a command
  on_every_worker "$failed" scp "$archive/hf_token" "$NAME:.hf_token"
fi
on_every_worker "$failed" ssh "$NAME" \
  --command='! pgrep -f "[m]ft-venv/bin/mft" || { echo "A run is going on here." >&2; exit 1; }
rm -rf mft && mkdir mft && tar -xzf mft_jax.tgz -C mft && SEVERAL_HOSTS='"$SEVERAL_HOSTS"' bash mft/tpu_scripts/worker_setup.sh'
say "mft_jax is installed. Next: ./run.sh"
warn_of_bill
