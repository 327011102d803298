#!/bin/sh
# Span credit against scalar credit on US addresses, on two CPU cores: every command is shown before it runs.
#
#   sh recipes/token_grpo/compare.sh    the model of sft/addresses; SEEDS (3) times: both ways, on the same prompts
#
# RATE (3e-5) is the learning rate. OUTPUT (runs/token_grpo-compare) is the folder of all runs. What is complete in it is not run again.
set -eu
output=${OUTPUT:-runs/token_grpo-compare}
seeds=${SEEDS:-3}
rate=${RATE:-3e-5}
start=${START:-$output/sft}
[ "$(getconf _NPROCESSORS_ONLN)" -gt 1 ] && processes=2 || processes=1
spread="use_cpu=true launch=ddp num_processes=$processes resume_from_checkpoint=true"

show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

[ -d "$start" ] || show tokencredit train sft/addresses output_dir="$start" $spread
set --
for arm in scalar span; do
    # Without a weight the spans say nothing: groups with equal scores are dead in one arm and alive in the other.
    [ "$arm" = span ] && credit='[outcome, {function: reward_spans, arguments: {weight: 0.5}}]' || credit='[outcome]'
    for seed in $(seq 0 $((seeds - 1))); do
        show tokencredit train token_grpo/addresses model_name_or_path="$start" output_dir="$output/$seed/$arm" \
            seed="$seed" credit="$credit" learning_rate="$rate" per_device_train_batch_size=$((64 / processes)) $spread
        set -- "$@" "$arm=$output/$seed/$arm"
    done
done
# Scalar credit comes first: it is what span credit is compared with.
show tokencredit eval "$@" start="$start" us_addresses --max-new-tokens 250 \
    --output "$output/scores.json" --markdown "$output/scores.md"
