#!/bin/sh
# SPAE, its control, REINFORCE++-baseline and GRPO from one start, for each seed: sh compare.sh [SEED...]
# FOLDER (runs/spae) takes the runs; START (made by `tokencredit train sft/sums` if it is missing) is the model they begin with.
# A seed takes about eight minutes on one CPU core. Judge with what is printed at the end.
set -eu

FOLDER=${FOLDER:-runs/spae}
START=${START:-runs/sft-sums}
RATE=${RATE:-1e-4}

[ -d "$START" ] || tokencredit train sft/sums output_dir="$START"
for seed in ${*:-0 1 2}; do
  for arm in reinforce_pp grpo spae shuffled; do
    recipe=spae/sums_$arm
    [ "$arm" = spae ] && recipe=spae/sums
    run=$FOLDER/$arm-$seed
    [ -f "$run/model.safetensors" ] && continue
    tokencredit train "$recipe" model_name_or_path="$START" learning_rate="$RATE" seed="$seed" output_dir="$run"
  done
done

set --
for arm in reinforce_pp grpo spae shuffled; do
  for run in "$FOLDER/$arm"-*; do
    set -- "$@" "$arm=$run"
  done
done
tokencredit probe "$@" start="$START" worked_sums --against reinforce_pp --against shuffled \
  --recipe spae/sums --max-new-tokens 90 --output "$FOLDER/probe.json"
