#!/usr/bin/env bash
# The experiment, from tuning to report:  scripts/reproduce.sh [--quick] [--report] [OUT]
#
# OUT is outputs/paper, where the repository keeps its runs; --quick: outputs/paper-quick, subsets
# and two seeds, some minutes; --report: nothing but the report of the runs so far. Each stage is a
# sweep or a report that can be typed by hand, and every command is shown. Runs that are done are
# skipped and others resumed: start it again whenever it has been stopped. A run has one thread.
set -euo pipefail
shopt -s nullglob

quick='' only_report='' out=''
for word in "$@"; do
    case $word in
        --quick) quick=yes ;;
        --report) only_report=yes ;;
        -*) echo "usage: scripts/reproduce.sh [--quick] [--report] [OUT]" >&2 && exit 2 ;;
        /*) out=$word ;;
        *) out=$PWD/$word ;;
    esac
done
cd "$(dirname "$0")/.."
out=${out:-outputs/paper${quick:+-quick}}

models=lstm,ln_lstm,bn_lstm_input,bn_lstm,elstm_bn # and gru, whose gates have other biases
rates=0.001,0.003,0.01,0.03
tuning_epochs=3 epochs=10 half=5
seeds=(0,1,2,3,4 5,6,7,8,9) # of the headline comparison; the other models have the first five
long_seeds=0,1,2
rows=() long=()
if [ "$quick" ]; then
    rates=0.003,0.01 tuning_epochs=1 epochs=2 half=1 seeds=(0,1) long_seeds=0,1
    rows=(data.train_size=3000) long=(data.train_size=1000 trainer.max_epochs=2)
fi
headline=(lstm bn_lstm elstm_bn)
failed=0

# sweep STUDY WORD...: an elstm-train sweep whose runs lie in OUT/STUDY
sweep() {
    local code=0 words=(trainer.threads=1 "hydra.sweep.dir='$out/$1'" "${@:2}")
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
    sweep tuning "${common[@]}" seed=100 model=$models optimizer.lr=$rates "${chrono[@]}"
    sweep tuning "${common[@]}" seed=100 model=$models optimizer.lr=$rates \
        model.forget_bias=1 model.input_bias=0
    sweep tuning "${common[@]}" seed=100 model=gru optimizer.lr=$rates model.update_bias=chrono,1
    # gamma 0.1, of Cooijmans et al. (2017), where gamma 1 was best; BN-LSTM's input norm too.
    sweep tuning "${common[@]}" seed=100 model=ln_lstm,bn_lstm_input,bn_lstm,elstm_bn \
        optimizer.lr=0.01 "${chrono[@]}" "${gamma[@]}"
    # A second seed for the two best settings of the headline's models.
    if [ ! "$quick" ]; then
        sweep tuning "${common[@]}" seed=101 model=lstm optimizer.lr=0.003,0.01 "${chrono[@]}"
        sweep tuning "${common[@]}" seed=101 model=bn_lstm,elstm_bn optimizer.lr=0.01,0.03 \
            "${chrono[@]}"
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

# The settings chosen on Fashion-MNIST are MNIST's too.
final() {
    local data model some
    for data in fashion mnist; do
        for some in "${seeds[@]}"; do
            for model in "${headline[@]}"; do
                sweep runs experiment=${data}_rows "${rows[@]}" trainer.max_epochs=$epochs \
                    model=$model seed=$some ${setting[$model]}
            done
        done
        for model in gru ln_lstm bn_lstm_input; do
            sweep runs experiment=${data}_rows "${rows[@]}" trainer.max_epochs=$epochs \
                model=$model seed=${seeds[0]} ${setting[$model]}
        done
    done
}

# Half the epochs: with a cosine schedule every curve's best comes at its end, so that the way to
# the LSTM's best within one schedule says less of a faster model than a schedule half as long.
halved() {
    local data model some
    for data in fashion mnist; do
        for some in "${seeds[@]}"; do
            for model in "${headline[@]}"; do
                sweep half experiment=${data}_rows "${rows[@]}" trainer.max_epochs=$half \
                    model=$model seed=$some ${setting[$model]}
            done
        done
    done
}

# The other readings of the cell update, with the setting of elstm_bn.
readings() {
    local data
    for data in fashion mnist; do
        sweep readings experiment=${data}_rows "${rows[@]}" trainer.max_epochs=$epochs \
            model=elstm_bn model.cell_norm=increment,terms,carry,update_output seed=${seeds[0]} \
            ${setting[elstm_bn]}
    done
}

longer() {
    local model
    for model in "${headline[@]}"; do
        sweep long experiment=fashion_196 "${long[@]}" model=$model seed=$long_seeds \
            ${setting[$model]}
    done
}

reports() {
    local lstm=("$out"/runs/*/lstm) ours=("$out"/runs/*/elstm_bn) study
    study=("$out"/readings/*/)
    [ ${#study[@]} = 0 ] || report "${study[@]}" "${ours[@]}" "${lstm[@]}" -o "$out/readings" \
        --title "Readings of the cell update"
    study=("$out"/half/*/)
    [ ${#study[@]} = 0 ] || report "${study[@]}" "${lstm[@]}" -o "$out/half" \
        --title "Half the epochs"
    report "$out/runs" "$out"/long/*/ -o "$out" --baseline lstm --baseline bn_lstm \
        --title "LSTM and its variants"
}

if [ ! "$only_report" ]; then
    tune
    choose
    final
    halved
    readings
    longer
fi
reports
[ $failed = 0 ] || echo "some runs have failed: see above, and the report" >&2
exit $failed
