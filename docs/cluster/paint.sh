#!/bin/bash
# paint.sh OUT TASKS [OPTION ...]: submit an array job that paints a set, and a job that closes it.
#
#     docs/cluster/paint.sh /scratch/shards/fractals 64 --n 1000000
#
# Given again, it makes what is missing and no more.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
out=$1
tasks=$2
shift 2

paint=$(sbatch --parsable --array="0-$((tasks - 1))" "$here/paint.sbatch" "$out" "$tasks" "$@")
# Also after a task that failed: merge says which shards are missing.
sbatch --dependency="afterany:$paint" "$here/merge.sbatch" "$out"
