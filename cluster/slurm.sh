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
ip=$(python -c 'import ray; print(ray.util.get_node_ip_address())')
address=$ip:$(free_port)
folder=/tmp/ray-$SLURM_JOB_ID              # short, and this job's own
shape=(--num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --disable-usage-stats)
ports=(--min-worker-port=0 --max-worker-port=0)  # free ones: other jobs may be on these machines

steps=()
job=
# shellcheck disable=SC2329 # the trap calls it
stop() {
  trap - EXIT INT TERM USR1
  if [[ -n $job ]]; then                   # first, while there is a Ray to leave; Slurm itself ends everything after 30 s
    kill -TERM "$job" 2>/dev/null || true
    for _ in {1..40}; do kill -0 "$job" 2>/dev/null || break; sleep 0.5; done
    kill -KILL "$job" 2>/dev/null || true
  fi
  [[ ${#steps[@]} == 0 ]] || kill -TERM "${steps[@]}" 2>/dev/null || true
  wait || true
  rm -rf "$folder"
  for machine in "${machines[@]:1}"; do srun "${one[@]}" --nodelist="$machine" rm -rf "$folder" 2>/dev/null || true; done
}
trap stop EXIT
trap 'exit 143' INT TERM
trap 'echo "slurm.sh: the time is up; the job goes on later"; stop; scontrol requeue "$SLURM_JOB_ID"; exit 0' USR1

srun "${one[@]}" --nodelist="$head" ray start --head --block --node-ip-address="$ip" --port="${address##*:}" --temp-dir="$folder" \
  --no-monitor --dashboard-host=127.0.0.1 --dashboard-port="$(free_port)" --ray-client-server-port="$(free_port)" \
  "${shape[@]}" "${ports[@]}" >>"slurm-$SLURM_JOB_ID.ray.log" 2>&1 &
steps+=("$!")
until (: <"/dev/tcp/$ip/${address##*:}") 2>/dev/null; do
  kill -0 "${steps[0]}" 2>/dev/null || { cat "slurm-$SLURM_JOB_ID.ray.log" >&2; exit 1; }
  sleep 0.5
done
for machine in "${machines[@]:1}"; do
  srun "${one[@]}" --nodelist="$machine" ray start --block --address="$address" --temp-dir="$folder/${#steps[@]}" \
    "${shape[@]}" "${ports[@]}" >>"slurm-$SLURM_JOB_ID.ray.log" 2>&1 &
  steps+=("$!")
done

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
