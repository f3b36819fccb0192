#!/usr/bin/env bash
# Several Ray nodes on this machine, on loopback and with a token, until Ctrl-C: a cluster to try things on.
#
#   cluster/local.sh            two nodes; another number: cluster/local.sh 4
#   statten submit jobs/digits.yaml --address http://127.0.0.1:8265        in another terminal
#
# What to edit, here or in the environment: cores and GPUs of each node, ports (0 takes a free one), Ray's folder. The names
# begin with LOCAL_SH, for Kubernetes sets PORTs of its own and other tools CPUS, GPUS or PYTHON.
CPUS=${LOCAL_SH_CPUS:-2}
GPUS=${LOCAL_SH_GPUS:-0}
PORT=${LOCAL_SH_PORT:-6379}
DASHBOARD_PORT=${LOCAL_SH_DASHBOARD_PORT:-8265}
RAY_FOLDER=${LOCAL_SH_FOLDER:-}     # short, and this cluster's own; empty makes one in /tmp and removes it at the end
PYTHON=${LOCAL_SH_PYTHON:-python}   # the one that has statten and ray

set -euo pipefail
NODES=${1:-2}
if ! [[ $NODES =~ ^[1-9][0-9]?$ ]]; then
  echo "local.sh: the number of nodes must be between 1 and 99, but got $NODES" >&2
  exit 2
fi
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0  # nodes that end together have nobody to hand their work to
PYTHON=$(command -v "$PYTHON")
export PATH="${PYTHON%/*}:$PATH"  # jobs start as `python`
"$PYTHON" -m statten.cli doctor --make-token

free_port() { "$PYTHON" -c 'from statten.cluster import free_port; print(free_port())'; }
[[ $PORT != 0 ]] || PORT=$(free_port)
[[ $DASHBOARD_PORT != 0 ]] || DASHBOARD_PORT=$(free_port)
made=
[[ -n $RAY_FOLDER ]] || { RAY_FOLDER=$(mktemp -d /tmp/ray-XXXXXX) && made=1; }
: >"$RAY_FOLDER/nodes.log"

url=http://127.0.0.1:$DASHBOARD_PORT
known=$HOME/.ray/dashboard_url      # where `statten submit` finds it, whatever the port

nodes=()
# shellcheck disable=SC2329 # the trap calls it
stop() {
  trap - EXIT INT TERM
  kill -TERM "${nodes[@]}" 2>/dev/null || true  # `ray start --block` takes the processes of its node with it
  wait || true
  for node in "${nodes[@]}"; do kill -KILL -- "-$node" 2>/dev/null || true; done
  [[ -z $made ]] || rm -rf "$RAY_FOLDER"
  [[ $(cat "$known" 2>/dev/null) != "$url" ]] || rm -f "$known"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

start() {
  # Each node leads a process group, so that nothing of it can stay behind, and has a folder of its own: nodes that share one
  # unpack a job's working directory over each other's.
  setsid "$PYTHON" -m ray.scripts.scripts start --block --node-ip-address=127.0.0.1 --num-cpus="$CPUS" --num-gpus="$GPUS" \
    --min-worker-port=0 --max-worker-port=0 --temp-dir="$RAY_FOLDER/${#nodes[@]}" --disable-usage-stats "$@" >>"$RAY_FOLDER/nodes.log" 2>&1 &
  nodes+=("$!")
}
start --head --port="$PORT" --dashboard-host=127.0.0.1 --dashboard-port="$DASHBOARD_PORT" \
  --ray-client-server-port="$(free_port)" --dashboard-agent-listen-port="$(free_port)"
alive() {  # or the end, with what the nodes said
  local node
  for node in "${nodes[@]}"; do kill -0 "$node" 2>/dev/null || { cat "$RAY_FOLDER/nodes.log" >&2; exit 1; }; done
  sleep 0.2
}
await() { until (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; do alive; done; }  # a port of the head
await "$PORT"
for ((node = 1; node < NODES; node++)); do
  start --address="127.0.0.1:$PORT" --dashboard-agent-listen-port="$(free_port)"
done
await "$DASHBOARD_PORT"
until (($(grep -c "Ray runtime started" "$RAY_FOLDER/nodes.log") == NODES)); do alive; done  # each says so once it has joined
echo "$url" >"$known"
echo "$NODES nodes with $CPUS cores each; submit to $url, join at 127.0.0.1:$PORT; Ctrl-C stops them"
echo "Ray's own commands ask for the token's mode: RAY_AUTH_MODE=token ray job list --address $url"
wait -n
echo "local.sh: a node ended, see $RAY_FOLDER/nodes.log" >&2
exit 1
