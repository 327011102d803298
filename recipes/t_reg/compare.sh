#!/bin/sh
# T-REG against DPO and two controls, on two CPU cores: every command is shown before it runs (recipes/t_reg/README.md).
#
#   sh recipes/t_reg/compare.sh    a model that can be steered; SEEDS (3) times: pairs of its samples, four ways of tuning
#
# OUTPUT (runs/t_reg-compare) is the folder of all runs. What is complete in it is not run again.
set -eu
output=${OUTPUT:-runs/t_reg-compare}
seeds=${SEEDS:-3}
rate=${RATE:-1e-4}
alpha=${ALPHA:-0.5}
[ "$(getconf _NPROCESSORS_ONLN)" -gt 1 ] && processes=2 || processes=1
spread="use_cpu=true launch=ddp num_processes=$processes resume_from_checkpoint=true"
mkdir -p "$output"

show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

# rewards FILE [OPTION]...: token rewards of the pairs as a file to train on.
rewards() {
    file=$1
    shift
    [ -e "$file" ] || show tokencredit token-rewards t_reg/addresses model_name_or_path="$output/sft" \
        dataset_name="$run/pairs.jsonl" --output "$file" "$@"
}

# arm NAME FILE [KEY=VALUE]...: tune the model on pairs with rewards.
arm() {
    name=$1 file=$2
    shift 2
    show tokencredit train t_reg/addresses model_name_or_path="$output/sft" dataset_name="$file" \
        output_dir="$run/$name" seed="$seed" learning_rate="$rate" alpha="$alpha" $spread "$@"
}

show tokencredit train sft/addresses_steerable output_dir="$output/sft" $spread
for seed in $(seq 0 $((seeds - 1))); do
    run=$output/$seed
    mkdir -p "$run"
    [ -e "$run/pairs.jsonl" ] || show tokencredit pairs pairs/addresses_samples model_name_or_path="$output/sft" \
        output_file="$run/pairs.jsonl" seed="$seed"
    rewards "$run/own.parquet"
    arm dpo "$run/own.parquet" alpha=0
    rewards "$run/shuffled.parquet" --shuffle "$seed"
    rewards "$run/derived.parquet" --from-dpo "$run/dpo"
    arm t_reg "$run/own.parquet"
    arm shuffled "$run/shuffled.parquet"
    arm derived "$run/derived.parquet"
done
# DPO comes first: it is what the others are compared with.
set --
for name in dpo t_reg shuffled derived; do
    for seed in $(seq 0 $((seeds - 1))); do
        set -- "$@" "$name=$output/$seed/$name"
    done
done
show tokencredit eval "$@" sft="$output/sft" us_addresses --max-new-tokens 250 \
    --output "$output/scores.json" --markdown "$output/scores.md"
