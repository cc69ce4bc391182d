#!/usr/bin/env bash
# The experiment, from tuning to report:  scripts/reproduce.sh [--quick] [--report] [--jobs N] [OUT]
#
# OUT is outputs/paper, where the repository keeps its runs; --quick: outputs/paper-quick, subsets
# and one or two seeds, some minutes; --report: nothing but the reports of the runs so far;
# --jobs N: N runs at once, by joblib (pip install 'elstm[joblib]'), each on one thread as always.
# Each stage is sweeps or reports that can be typed by hand, and every command is shown. Runs that
# are done are skipped and others resumed: start it again whenever it was stopped, with any N.
set -euo pipefail
shopt -s nullglob

usage() {
    echo "usage: scripts/reproduce.sh [--quick] [--report] [--jobs N] [OUT]" >&2
    exit 2
}

quick='' only_report='' jobs=1 out=''
while [ $# -gt 0 ]; do
    case $1 in
        --quick) quick=yes ;;
        --report) only_report=yes ;;
        --jobs) [[ ${2-} =~ ^[1-9][0-9]*$ ]] || usage && jobs=$2 && shift ;;
        -*) usage ;;
        /*) out=$1 ;;
        *) out=$PWD/$1 ;;
    esac
    shift
done
cd "$(dirname "$0")/.."
out=${out:-outputs/paper${quick:+-quick}}
launcher=()
if [ "$jobs" -gt 1 ]; then
    launcher=(hydra/launcher=joblib "hydra.launcher.n_jobs=$jobs")
    elstm-train "${launcher[@]}" --cfg job >/dev/null # says what is to be installed, if it is not
fi

normalised=ln_lstm,bn_lstm_input,bn_lstm,elstm_bn
models=lstm,$normalised # and gru, whose gates have other biases
rates=0.001,0.003,0.01,0.03 longer_rates=0.003,0.01,0.03
decays=0.03,0.1 wide=256
tuning_epochs=3 epochs=10 half=5 double=20 whole_tuning_epochs=8 whole_epochs=18
ten=0,1,2,3,4,5,6,7,8,9 five=0,1,2,3,4 three=0,1,2 # seeds
rows=() long=() pixels=()
if [ "$quick" ]; then
    rates=0.01 longer_rates=0.01 decays=0.1 wide=160 tuning_epochs=1 epochs=2 half=1 double=3 whole_tuning_epochs=1 whole_epochs=1 ten=0,1 five=0 three=0,1
    rows=(data.train_size=3000)
    long=(data.train_size=1000 trainer.max_epochs=1 data.pixels_per_step=7)
    pixels=("${long[@]}" data.pixels_per_step=14) # most of it is evaluation, of all 10,000 images
fi
headline=(lstm bn_lstm elstm_bn)
# As the kept runs of up to 196 steps have them; there the default gives the same accuracies.
statistics=(trainer.recompute_batches=10 trainer.recompute_batch_size=1000)
subsets=experiment=mnist_pixels_subset,mnist_permuted_subset
failed=0

# sweep STUDY WORD...: an elstm-train sweep whose runs lie in OUT/STUDY
sweep() {
    local code=0 words=("${launcher[@]}" trainer.threads=1 "hydra.sweep.dir='$out/$1'"
        "${statistics[@]}" "${@:2}")
    echo "+ elstm-train -m ${words[*]}"
    elstm-train -m "${words[@]}" || code=$?
    [ $code -lt 2 ] || exit $code # a signal, or a word that is wrong
    [ $code = 0 ] || failed=1
}

report() {
    echo "+ elstm-report $*"
    elstm-report "$@"
}

tune() {
    local common=(experiment=fashion_rows trainer.max_epochs=$tuning_epochs "${rows[@]}")
    local chrono=(model.forget_bias=chrono model.input_bias=chrono)
    local gamma=(model.gamma_ih=0.1 model.gamma_hh=0.1 model.gamma_c=0.1)
    # The same grid for all, with seeds that are not used afterwards.
    local usual=(model.forget_bias=1 model.input_bias=0) words
    for words in model=lstm "model=$normalised model.gamma_c=1"; do
        sweep tuning "${common[@]}" seed=100 $words optimizer.lr=$rates "${chrono[@]}"
        sweep tuning "${common[@]}" seed=100 $words optimizer.lr=$rates "${usual[@]}"
    done
    sweep tuning "${common[@]}" seed=100 model=gru optimizer.lr=$rates model.update_bias=chrono,1
    # gamma 0.1, of Cooijmans et al. (2017), where gamma 1 was best; BN-LSTM's input norm too.
    sweep tuning "${common[@]}" seed=100 model=$normalised \
        optimizer.lr=0.01 "${chrono[@]}" "${gamma[@]}"
    # A second seed for the two best settings of the headline's models.
    if [ ! "$quick" ]; then
        sweep tuning "${common[@]}" seed=101 model=lstm optimizer.lr=0.003,0.01 "${chrono[@]}"
        sweep tuning "${common[@]}" seed=101 model=bn_lstm,elstm_bn optimizer.lr=0.01,0.03 \
            model.gamma_c=1 "${chrono[@]}"
    fi
}

declare -A setting # by model, the overrides chosen for it
choose() {
    local model
    for model in ${models//,/ } gru; do
        setting[$model]=$(python scripts/choose.py "$out/tuning" --model "$model")
    done
    python scripts/choose.py "$out/tuning" | tee "$out/tuning/settings.md"
}

# Ten seeds for the headline, five for the other models. The settings chosen on Fashion-MNIST are
# MNIST's too.
final() {
    local model both=experiment=fashion_rows,mnist_rows
    for model in "${headline[@]}"; do
        sweep runs $both "${rows[@]}" trainer.max_epochs=$epochs model=$model seed=$ten \
            ${setting[$model]}
    done
    for model in gru ln_lstm bn_lstm_input; do
        sweep runs $both "${rows[@]}" trainer.max_epochs=$epochs model=$model seed=$five \
            ${setting[$model]}
    done
}

# Where the method is at its best: decoupled weight decay and width, with a seed of their own and the
# same settings for all three models (and 0.3, tried first, for eLSTM-BN alone: far too much).
search() {
    local model both=experiment=fashion_rows,mnist_rows
    for model in "${headline[@]}"; do
        local common=($both "${rows[@]}" trainer.max_epochs=$epochs model=$model seed=100
            optimizer=adamw ${setting[$model]})
        sweep search "${common[@]}" optimizer.weight_decay=$decays
        sweep search "${common[@]}" optimizer.weight_decay=0.1 model.hidden_size=$wide
        [ $model != elstm_bn ] || sweep search "${common[@]}" optimizer.weight_decay=0.3
    done
}

# The setting that eLSTM-BN's validation accuracy chose on each set, for all three models.
best() {
    local data=$1 experiment=$2 seeds=$3 model chosen
    python scripts/choose.py "$out/search/$data" | tee "$out/search/$data.md"
    chosen=$(python scripts/choose.py "$out/search/$data" --model elstm_bn)
    for model in "${headline[@]}"; do
        sweep best experiment=$experiment "${rows[@]}" trainer.max_epochs=$epochs model=$model \
            seed=$seeds optimizer=adamw ${setting[$model]} $chosen
    done
}

# Searched on MNIST once that was confirmed: decay of matrices alone, from which eLSTM-BN gained
# nothing, and twice the epochs.
search_again() {
    local model
    for model in "${headline[@]}"; do
        local common=(experiment=mnist_best "${rows[@]}" model=$model seed=100 ${setting[$model]})
        sweep search-again "${common[@]}" trainer.max_epochs=$epochs optimizer.decay_all=false
        sweep search-again "${common[@]}" trainer.max_epochs=$double
    done
    python scripts/choose.py "$out/search-again" | tee "$out/search-again/mnist.md"
}

doubled() {
    local model chosen
    chosen=$(python scripts/choose.py "$out/search-again" --model elstm_bn)
    for model in "${headline[@]}"; do
        sweep double experiment=mnist_best "${rows[@]}" model=$model seed=$five ${setting[$model]} \
            $chosen
    done
}

# Half the epochs: with a cosine schedule every curve's best comes at its end, so that the way to
# the LSTM's best within one schedule says less of a faster model than a schedule half as long.
halved() {
    local model
    for model in "${headline[@]}"; do
        sweep half experiment=fashion_rows,mnist_rows "${rows[@]}" trainer.max_epochs=$half \
            model=$model seed=$ten ${setting[$model]}
    done
}

# Seconds to the LSTM's best: one run at a time, whatever --jobs says, and for a machine that has
# nothing else to do.
timed() {
    local model seed length launcher=() statistics=()
    for seed in ${three//,/ }; do
        for model in "${headline[@]}"; do
            length=$half
            [ $model != lstm ] || length=$epochs
            sweep timed experiment=fashion_rows "${rows[@]}" trainer.max_epochs=$length \
                model=$model seed=$seed ${setting[$model]}
        done
    done
}

# The other readings of the cell update, with the setting of elstm_bn. They have no fast recurrence
# and take several times as long: hence Fashion-MNIST alone and half the epochs, to be compared with
# the runs of halved().
readings() {
    sweep readings experiment=fashion_rows "${rows[@]}" trainer.max_epochs=$half model=elstm_bn \
        model.cell_norm=increment,terms,carry,update_output seed=$five ${setting[elstm_bn]}
}

longer() {
    local model
    for model in "${headline[@]}"; do
        sweep long experiment=fashion_196 "${long[@]}" model=$model seed=$three ${setting[$model]}
    done
}

# The learning rate, which 28 steps had chosen, again for longer sequences: tune_longer STUDY WORD...
tune_longer() {
    local model statistics=()
    for model in "${headline[@]}"; do
        sweep "$1" seed=100 model=$model ${setting[$model]} $(softened $model) \
            optimizer.lr=$longer_rates "${@:2}"
    done
    python scripts/choose.py "$out/$1" | tee "$out/$1/settings.md"
}

# eLSTM-BN's gamma_c for longer sequences: see gammas().
softened() {
    [ $1 != elstm_bn ] || echo model.gamma_c=3
}

# The full training split at 196 steps.
longest() {
    local model seed statistics=()
    tune_longer tuning-196 experiment=fashion_196 trainer.max_epochs=$half "${long[@]}"
    for seed in ${five//,/ }; do
        for model in "${headline[@]}"; do
            sweep full-196 experiment=fashion_196 data.train_size=null trainer.max_epochs=$half \
                "${long[@]}" model=$model seed=$seed ${setting[$model]} $(softened $model) \
                $(python scripts/choose.py "$out/tuning-196" --model $model)
        done
    done
}

# Larger batches at rows, over half the epochs, with the learning rate of 128 and the next higher.
batches() {
    local model statistics=()
    for model in "${headline[@]}"; do
        local common=(experiment=fashion_rows "${rows[@]}" trainer.max_epochs=$half model=$model
            seed=100 ${setting[$model]})
        sweep batches "${common[@]}" data.batch_size=128
        sweep batches "${common[@]}" data.batch_size=512 optimizer.lr=0.01,0.03
    done
}

# How large the cell may grow before its norm shrinks it (gamma_c, and eps with it), with seeds of
# their own: at rows over half the epochs, for BN-LSTM too, though it does not carry the result; and
# at 784 steps, where eLSTM-BN forgets too soon with 1.
gammas() {
    local common=("${rows[@]}" trainer.max_epochs=$half) statistics=("${statistics[@]}")
    sweep gamma experiment=fashion_rows,mnist_rows "${common[@]}" model=elstm_bn seed=100 \
        ${setting[elstm_bn]} model.gamma_c=1,2,3,5
    sweep gamma experiment=fashion_rows "${common[@]}" model=elstm_bn seed=100 \
        ${setting[elstm_bn]} model.gamma_c=10
    sweep gamma experiment=fashion_rows "${common[@]}" model=elstm_bn seed=101 \
        ${setting[elstm_bn]} model.gamma_c=1,2,3,5
    sweep gamma experiment=fashion_rows "${common[@]}" model=bn_lstm seed=100 \
        ${setting[bn_lstm]} model.gamma_c=1,3,10
    statistics=()
    sweep gamma-pixels experiment=mnist_pixels_subset "${pixels[@]}" model=elstm_bn seed=100 \
        ${setting[elstm_bn]} model.gamma_c=3,10
    sweep gamma-pixels $subsets "${pixels[@]}" model=bn_lstm seed=100 ${setting[bn_lstm]} \
        model.gamma_c=3
}

# gamma_c 3, which 784 steps chose, at the lengths of the other studies.
softer() {
    local words=(model=elstm_bn ${setting[elstm_bn]} model.gamma_c=3)
    sweep soft experiment=fashion_rows,mnist_rows "${rows[@]}" trainer.max_epochs=$epochs \
        seed=$ten "${words[@]}"
    sweep soft experiment=fashion_196 "${long[@]}" seed=$three "${words[@]}"
}

# Pixel by pixel, 784 steps, in order and permuted: a subset, which a CPU can bear.
pixel_by_pixel() {
    local model statistics=() # one batch: with gamma_c 1 ten batches' would not do at 784 steps
    for model in lstm bn_lstm; do
        sweep pixels $subsets "${pixels[@]}" model=$model seed=$five ${setting[$model]}
    done
    sweep pixels $subsets "${pixels[@]}" model=elstm_bn seed=$five ${setting[elstm_bn]} \
        model.gamma_c=3
    sweep pixels $subsets "${pixels[@]}" model=elstm_bn seed=0 ${setting[elstm_bn]}
}

# Permuted, with the learning rate that the subset chooses there for each model.
permuted() {
    local model seed statistics=()
    tune_longer tuning-permuted experiment=mnist_permuted_subset "${pixels[@]}"
    for seed in ${five//,/ }; do
        for model in "${headline[@]}"; do
            sweep permuted experiment=mnist_permuted_subset "${pixels[@]}" model=$model \
                seed=$seed ${setting[$model]} $(softened $model) \
                $(python scripts/choose.py "$out/tuning-permuted" --model $model)
        done
    done
}

# Permuted, on all images: a rate (and whether to decay weights) chosen for eLSTM-BN, and BN-LSTM with
# the same; one seed each, where there is a GPU.
whole() {
    local model statistics=() words=(experiment=mnist_permuted_subset data.train_size=null "${pixels[@]}")
    local tried=("${words[@]}" trainer.max_epochs=$whole_tuning_epochs seed=100 model=elstm_bn
        ${setting[elstm_bn]} $(softened elstm_bn) optimizer.lr=0.01,0.03)
    sweep tuning-whole "${tried[@]}"
    sweep tuning-whole "${tried[@]}" optimizer=adamw optimizer.weight_decay=0.1
    python scripts/choose.py "$out/tuning-whole" | tee "$out/tuning-whole/settings.md"
    python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || return 0
    for model in elstm_bn bn_lstm; do
        sweep whole "${words[@]}" trainer.max_epochs=$whole_epochs model=$model seed=0 \
            ${setting[$model]} $(softened $model) optimizer.lr=0.01 \
            trainer.threads=null trainer.device=cuda trainer.log_every=250
    done
}

# report_of STUDY WORD...: of the runs in OUT/STUDY, if there are any, and of those that WORDs add
report_of() {
    [ ! -d "$out/$1" ] || report "$out/$1" "${@:2}" -o "$out/$1"
}

# A report for each study: a figure's name then does not hang on which others are there.
reports() {
    local both=(--baseline lstm --baseline bn_lstm)
    report_of best "${both[@]}" --title "The best setting of the search"
    report_of double "${both[@]}" --title "The best setting of the search, twice the epochs"
    report_of half "$out"/runs/*/lstm --title "Half the epochs"
    report_of timed "${both[@]}" --title "Wall-clock time, one run at a time"
    report_of readings "$out"/half/fashion_mnist/*bn* --baseline cell_norm=update \
        --baseline bn_lstm --title "Readings of the cell update, half the epochs"
    report_of renorm "$out"/half/fashion_mnist/*bn* "$out"/long/*/*bn* --baseline bn_lstm \
        --title "Batch renormalisation"
    report_of long "${both[@]}" --title "Longer sequences, a subset"
    report_of full-196 "${both[@]}" --title "Longer sequences, the full training split"
    report_of batches --title "Larger batches, half the epochs"
    report_of gamma --title "How soft the cell's norm is, half the epochs"
    report_of gamma-pixels --title "Pixel by pixel, what was tried first"
    report_of soft "$out"/{runs,long}/*/{lstm,bn_lstm,elstm_bn} "${both[@]}" \
        --title "A softer norm of the cell"
    report_of pixels "${both[@]}" --title "Pixel by pixel and permuted, a subset"
    report_of permuted "${both[@]}" --title "Permuted, a subset, with learning rates of its own"
    report_of whole --baseline bn_lstm --title "Permuted, all images"
    report "$out/runs" "${both[@]}" -o "$out" --title "LSTM and its variants"
}

if [ ! "$only_report" ]; then
    tune
    choose
    final
    search
    best fashion_mnist fashion_rows $five
    best mnist mnist_rows $ten
    search_again
    doubled
    halved
    timed
    readings
    longer
    longest
    batches
    gammas
    softer
    pixel_by_pixel
    permuted
    whole
fi
reports
[ $failed = 0 ] || echo "some runs have failed: see above, and the report" >&2
exit $failed
