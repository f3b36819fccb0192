#!/usr/bin/env bash
# Slurm: a Ray cluster on the machines of an allocation, for one job file; started again, the job goes on where it was.
#
#   sbatch cluster/slurm.sh jobs/imagenet_8_768.yaml                       # from the repository
#   sbatch --nodes=4 cluster/slurm.sh jobs/imagenet_sweep.yaml --storage /scratch/runs --set data.root=/scratch/imagenet
#   tail -f slurm-JOBID.out
#
# What to edit: the lines that begin with #SBATCH (partition, account, machines, CPUs, GPUs, hours), and STATTEN_VENV. The
# repository, the storage and the home folder must be seen by all machines. Ports are free ones, open between the machines;
# whoever else is on them needs the token, which lies in ~/.ray/auth_token and is made if it is not there.
#SBATCH --job-name=statten
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append                 # what was printed before stays when the job goes on
#SBATCH --signal=B:USR1@120                # two minutes before the time is up: back into the queue
STATTEN_VENV=${STATTEN_VENV:-.venv}        # where `make setup` put it; activated on every machine

set -euo pipefail
JOB=${1:?which job file? sbatch cluster/slurm.sh jobs/FILE.yaml}
# shellcheck disable=SC1091 # made by make setup
. "$STATTEN_VENV/bin/activate"
python -m statten.cli doctor --make-token
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export RAY_DISABLE_FAILURE_SIGNAL_HANDLER=1    # SIGTERM is how a job is requeued; Python still reports crashes
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0  # machines that end together have nobody to hand their work to

free_port() { python -c 'from statten.cluster import free_port; print(free_port(""))'; }
# Of a step, which would not have all of the job's variables and cores by itself.
one=(--export=ALL --overlap --nodes=1 --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}")
mapfile -t machines < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${machines[0]}                        # this script runs there
# A machine's address, from Slurm's own table: what it would take for its address itself is a guess, and 127.0.0.1 where no
# route leads outside. Names are looked up on another machine, for on itself a name may well mean loopback.
address_of() {
  local name other=("$@")
  name=$(scontrol -o show node "$1" | grep -o ' NodeAddr=[^ ]*')
  name=${name#*=}
  [[ ! $name =~ ^[0-9.]+$ ]] || { echo "$name"; return; }
  for other in "${machines[@]}"; do [[ $other == "$1" ]] || break; done
  srun "${one[@]}" --nodelist="$other" getent ahostsv4 "$name" | awk '{print $1; exit}'
}
ip=$(address_of "$head")
[[ -n $ip ]] || { echo "slurm.sh: no address is known for $head; see: scontrol show node $head" >&2; exit 1; }
address=$ip:$(free_port)
folder=/tmp/ray-$SLURM_JOB_ID              # short, and this job's own
log=slurm-$SLURM_JOB_ID.ray.log

# A Ray node: a step that takes its folder away with it, however the job is ended.
# shellcheck disable=SC2016 # it is for the machine's own bash
node='
folder=$1 name=$2
clean() { for _ in {1..20}; do rm -rf "$folder" 2>/dev/null && break; sleep 0.5; done; }
trap clean EXIT
trap "kill -TERM \$ray 2>/dev/null" TERM
clean; mkdir -m 700 "$folder" "$folder/tmp"
# Workers of a run take the interface of this address, not one that a guess would give them.
interface=$(ip -o -4 addr show 2>/dev/null | awk -v ip="$name" "{split(\$4, a, \"/\")} a[1] == ip {print \$2; exit}")
[[ -z $interface ]] || export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$interface} NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$interface}
TMPDIR=$folder/tmp ray start --block --temp-dir="$folder/ray" --node-ip-address="$name" "${@:3}" & ray=$!
wait "$ray"; wait "$ray" 2>/dev/null'
steps=()
start() {  # machine, address, options of `ray start`
  srun "${one[@]}" --nodelist="$1" bash -c "$node" node "$folder" "${@:2}" --disable-usage-stats \
    --num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
    --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0 >>"$log" 2>&1 &  # free ones: there may be other jobs
  steps+=("$!")
}

job=
# shellcheck disable=SC2329 # the trap calls it
stop() {
  trap - EXIT INT TERM USR1
  if [[ -n $job ]]; then                   # first, while there is a Ray to leave; Slurm itself ends everything after 30 s
    kill -TERM "$job" 2>/dev/null || true
    for _ in {1..40}; do kill -0 "$job" 2>/dev/null || break; sleep 0.5; done
    kill -KILL "$job" 2>/dev/null || true
  fi
  [[ ${#steps[@]} == 0 ]] || scancel --signal=TERM "$SLURM_JOB_ID" 2>/dev/null || true  # its steps, not this script
  for _ in {1..40}; do kill -0 "${steps[@]}" 2>/dev/null || break; sleep 0.5; done
  [[ ${#steps[@]} == 0 ]] || kill -TERM "${steps[@]}" 2>/dev/null || true
  wait || true
}
trap stop EXIT
trap 'exit 143' INT TERM
trap 'echo "slurm.sh: the time is up; the job goes on later"; stop; scontrol requeue "$SLURM_JOB_ID"; exit 0' USR1

start "$head" "$ip" --head --port="${address##*:}" --no-monitor --dashboard-host=127.0.0.1 --dashboard-port="$(free_port)" \
  --ray-client-server-port="$(free_port)"
until (: <"/dev/tcp/$ip/${address##*:}") 2>/dev/null; do
  kill -0 "${steps[0]}" 2>/dev/null || { cat "$log" >&2; exit 1; }
  sleep 0.5
done
for machine in "${machines[@]:1}"; do start "$machine" "$(address_of "$machine")" --address="$address"; done

# The job starts when every machine is there.
RAY_ADDRESS=$address python - "${#machines[@]}" <<'END'
import sys, time
import ray

ray.init(log_to_driver=False, logging_level="ERROR")
deadline = time.monotonic() + 300
while (found := sum(node["Alive"] for node in ray.nodes())) < int(sys.argv[1]):
    if time.monotonic() > deadline:
        sys.exit(f"slurm.sh: only {found} of {sys.argv[1]} machines joined within 300 s")
    time.sleep(0.5)
END
echo "slurm.sh: ${#machines[@]} machines at $address; running $JOB"
RAY_ADDRESS=$address python -m statten.cli run "$JOB" --resume "${@:2}" &
job=$!
code=0
wait "$job" || code=$?
exit "$code"
