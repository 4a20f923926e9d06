#!/usr/bin/env bash
# Installs mft_jax on this worker. setup.sh calls it there, after it has unpacked ~/mft.
set -euo pipefail

cd "$HOME/mft"
if [[ -f $HOME/.hf_token ]]; then
  mkdir -p "$HOME/.cache/huggingface"
  mv "$HOME/.hf_token" "$HOME/.cache/huggingface/token"
  chmod 600 "$HOME/.cache/huggingface/token"
fi
# The machine has Python 3.10; uv brings a newer one.
python3 -m pip install --quiet --user --upgrade uv
python3 -m uv venv --quiet --clear --python 3.12 "$HOME/mft-venv"
python3 -m uv pip install --quiet --python "$HOME/mft-venv/bin/python" -e '.[tpu,gcs]'
if [[ ${SEVERAL_HOSTS:-no} == yes ]] || ((${SKYPILOT_NUM_NODES:-1} > 1)); then
  # JAX finds the chips of several hosts only while all of them look for theirs, as they do when the run starts.
  "$HOME/mft-venv/bin/python" -c 'import jax, libtpu; print("JAX", jax.__version__)'
  exit 0
fi
"$HOME/mft-venv/bin/python" - <<'EOF'
import jax

devices = jax.devices()
if devices[0].platform != "tpu":
    raise SystemExit(f"JAX finds no TPU here, only {devices}: is another process using it?")
print(f"{len(devices)} x {devices[0].device_kind}")
EOF
