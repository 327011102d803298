#!/bin/sh
# From labelled text to a better model, on two CPU cores: every command is shown before it runs.
#
#   sh quickstart.sh         SEEDS (1) times: SFT, pairs from its confusions, five ways of tuning; scores, a report
#   sh quickstart.sh tune    how the learning rates of the five recipes were chosen (docs/quickstart.md)
#
# OUTPUT (runs/quickstart) is the folder of all runs. What is complete in it is not run again: after changing a recipe,
# remove its runs or name another folder.
set -eu
output=${OUTPUT:-runs/quickstart}
seeds=${SEEDS:-1}
case "$seeds" in *[!0-9]* | 0*) echo "error: SEEDS: '$seeds' is no number of seeds; give 1 or more" >&2 && exit 2 ;; esac
case "${1-}" in "" | tune) ;; *) echo "error: '$1' is unknown; give nothing, or tune" >&2 && exit 2 ;; esac
# Two processes of one thread each: small tensors gain little from a second thread.
[ "$(getconf _NPROCESSORS_ONLN)" -gt 1 ] && processes=2 || processes=1
# So is scoring: two threads on cores that have other work wait for each other most of the time.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
spread="use_cpu=true launch=ddp num_processes=$processes"
arms="continued=sft/addresses_continued weighted=sft/addresses_weighted dpo=preference/addresses_dpo
      tab_po=tab_po/addresses tab_po_sum=tab_po/addresses_sum"
begin=$(date +%s)
mkdir -p "$output"
: > "$output/timings.txt"

# stage NAME COMMAND...: show it, run it, note how long it took.
stage() {
    name=$1
    shift
    printf '\n$ %s\n' "$*"
    start=$(date +%s)
    "$@"
    printf '%-22s %4s s\n' "$name" $(($(date +%s) - start)) >> "$output/timings.txt"
}

# sft SEED: a small model from scratch, stopped while there is room to improve.
sft() {
    stage "$1/sft" tokencredit train sft/addresses output_dir="$output/$1/sft" seed="$1" $spread \
        resume_from_checkpoint=true
}

# pairs SEED: confusions are counted on validation[:50%]; validation[50%:] gets pairs to evaluate on.
pairs() {
    run=$output/$1
    [ "$run/pairs/validation.jsonl" -nt "$run/sft/model.safetensors" ] && return
    stage "$1/pairs" tokencredit pairs pairs/addresses model_name_or_path="$run/sft" \
        output_file="$run/pairs/train.jsonl" overwrite=true seed="$1"
    stage "$1/pairs (validation)" tokencredit pairs pairs/addresses \
        confusion="$run/pairs/train.jsonl.confusion.json" dataset_train_split='validation[50%:]' \
        output_file="$run/pairs/validation.jsonl" overwrite=true seed="$1"
}

# arm SEED FOLDER RECIPE [KEY=VALUE]...: tune the model of SFT; all arms have the same data and number of steps.
arm() {
    run=$output/$1 seed=$1 folder=$2 recipe=$3
    shift 3
    stage "$seed/$folder" tokencredit train "$recipe" model_name_or_path="$run/sft" dataset_name="$run/pairs" \
        dataset_config=null dataset_test_split=validation output_dir="$run/$folder" seed="$seed" \
        $spread resume_from_checkpoint=true "$@"
}

if [ "${1-}" = tune ]; then
    sft 0
    pairs 0
    for arm in $arms; do
        for rate in 1e-4 3e-4 1e-3 3e-3; do
            arm 0 "tune/${arm%%=*}/$rate" "${arm#*=}" learning_rate=$rate
        done
    done
    for rate in 1e-5 3e-5; do # the best rate of DPO lay at the edge
        arm 0 tune/dpo/$rate preference/addresses_dpo learning_rate=$rate
    done
    for arm in tab_po=tab_po/addresses tab_po_sum=tab_po/addresses_sum; do # without the barrier
        arm 0 "tune/${arm%%=*}/lam-0" "${arm#*=}" lam=0
    done
    exit
fi

for seed in $(seq 0 $((seeds - 1))); do
    sft "$seed"
    pairs "$seed"
    for arm in $arms; do
        arm "$seed" "${arm%%=*}" "${arm#*=}"
    done
done
# SFT continued comes first: it is what the others are compared with.
set --
for arm in continued sft weighted dpo tab_po tab_po_sum; do
    for seed in $(seq 0 $((seeds - 1))); do
        set -- "$@" "$arm=$output/$seed/$arm"
    done
done
stage evaluation tokencredit eval "$@" us_addresses --max-new-tokens 250 \
    --output "$output/scores.json" --markdown "$output/scores.md"
stage report tokencredit report "$output/0/dpo" "$output/0/tab_po" "$output/0/tab_po_sum" "$output/0/continued" \
    --output "$output/report.html"

printf '\nHow long each stage took:\n'
cat "$output/timings.txt"
printf '%-22s %4s s\n' "all" $(($(date +%s) - begin))
