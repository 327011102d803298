#!/bin/bash
# A recipe on the nodes of a SLURM allocation: sbatch slurm.sh my.yaml launch=zero3 output_dir=/shared/run
# A Ray cluster of these nodes is started, runs the recipe, and ends with it; its exit code is the job's. With
# `resume_from_checkpoint=true` and --requeue, a job that was cut off goes on where it was.
#SBATCH --job-name=tokencredit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail
# Here: what makes `ray` and `tokencredit` available on every node, e.g. source /shared/venv/bin/activate

# Whoever reaches Ray's ports can run code on the nodes; only processes of this job know the token.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0
# When the recipe has ended nothing is left to wait for; Ray would wait half a minute, and SLURM kills after as long.
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0
port=$((20000 + SLURM_JOB_ID % 20000)) # of this job alone, should nodes be shared
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")

step=(srun --overlap --nodes=1 --ntasks=1 --cpus-per-task="$SLURM_CPUS_PER_TASK")
address_of() { "${step[@]}" --nodelist="$1" hostname --ip-address | awk '{print $1}'; }
start_ray() {
  local ip
  ip=$(address_of "$1")
  "${step[@]}" --nodelist="$1" \
    ray start --block --node-ip-address="$ip" --num-cpus="$SLURM_CPUS_PER_TASK" "${@:2}" &
}

trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
head=$(address_of "${nodes[0]}"):$port
start_ray "${nodes[0]}" --head --port="$port" --include-dashboard=false
for node in "${nodes[@]:1}"; do start_ray "$node" --address="$head"; done

# The recipe begins when all nodes are there, and no more than five minutes are waited for them.
"${step[@]}" --nodelist="${nodes[0]}" timeout 300 python -c "
import ray, time
while True:
    try:
        ray.init('$head', log_to_driver=False, logging_level='ERROR')
        break
    except Exception:
        time.sleep(1)
while sum(node['Alive'] for node in ray.nodes()) < ${#nodes[@]}:
    time.sleep(1)
" || { echo "error: not all of ${nodes[*]} joined Ray's head at $head within five minutes" >&2; exit 1; }
"${step[@]}" --nodelist="${nodes[0]}" tokencredit train "$@" launch.ray.address="$head"
