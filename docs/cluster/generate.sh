#!/bin/bash
# generate.sh OUT TASKS [OPTION ...]: submit an array job that generates a set of fractals,
# and a job that merges its shards.
#
#     docs/cluster/generate.sh /scratch/fractals 4 --n 14000 --shard-size 100
#
# Run it again to make only the shards that are missing.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
out=$1
tasks=$2
shift 2

generate=$(sbatch --parsable --array="0-$((tasks - 1))" "$here/generate.sbatch" "$out" "$tasks" "$@")
# Runs after a failed task, too: merge lists the missing shards.
sbatch --dependency="afterany:$generate" "$here/merge.sbatch" "$out"
