#!/usr/bin/env bash
# Measures this project and its peers in turn, in one go: table on standard output, figures as JSON, a plot as SVG.
#
#   scripts/bench.sh                          five rounds, small logs, all rows (about 40 minutes with all peers)
#   scripts/bench.sh --full                   sizes of the targets: needs 45 GB of disk, and 20 minutes more
#   scripts/bench.sh --only c64,c1000 --rounds 3 --peers etcd
#   scripts/bench.sh --publish [...]          and put the figures into docs/performance.md and README.md
#
# Other options are those of `python -m dledger.bench suite` (--help). Peers that are not installed are left out by
# name: etcd (or ETCD), nats-server (NATS_SERVER), rabbitmq-server (RABBITMQ_BIN: its folder). etcd's load driver is in
# Go (ETCD_LOAD); where Go is installed it is built once from benchmarks/peers/etcd_load.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

publish=
arguments=()
for argument in "$@"; do
    if [[ $argument == --publish ]]; then publish=yes; else arguments+=("$argument"); fi
done

cd "$repository"
ensure_venv "ui,fast"

etcd_is_there() { [[ -n ${ETCD:-} ]] || command -v etcd >/dev/null 2>&1; }
if [[ -z ${ETCD_LOAD:-} ]] && etcd_is_there && ! command -v etcd_load >/dev/null 2>&1; then
    export ETCD_LOAD="$venv/bin/etcd_load"
    source_dir=benchmarks/peers/etcd_load
    if [[ ! -x $ETCD_LOAD || $source_dir/main.go -nt $ETCD_LOAD ]] && command -v go >/dev/null 2>&1; then
        say "building etcd's load driver (a few minutes, the first time)"
        (cd "$source_dir" && go build -o "$ETCD_LOAD" .) || say "it could not be built: etcd will be left out"
    fi
fi

for argument in "${arguments[@]}"; do
    [[ $argument == --help ]] && exec "$venv/bin/python" -m dledger.bench suite --help
done

output=dledger-bench-data/bench.json
for ((i = 0; i < ${#arguments[@]}; i++)); do
    case ${arguments[i]} in
        --output) output=${arguments[i + 1]:-$output} ;;
        --output=*) output=${arguments[i]#--output=} ;;
    esac
done

"$venv/bin/python" -m dledger.bench suite "${arguments[@]}"
"$venv/bin/python" -m dledger.bench report "$output" --plot "${output%.json}.svg"
say "figures: $output, plot: ${output%.json}.svg"
if [[ -n $publish ]]; then
    cp "$output" benchmarks/published.json
    "$venv/bin/python" -m dledger.bench report benchmarks/published.json --notes benchmarks/why.json \
        --into docs/performance.md --into README.md --plot docs/images/performance.svg
    say "published in docs/performance.md, README.md and docs/images/performance.svg"
fi
