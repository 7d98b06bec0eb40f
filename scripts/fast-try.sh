#!/usr/bin/env bash
# A three-node group from conf/dledger, like RocketMQ's fast-try.sh but with an end to it:
#
#   scripts/fast-try.sh start|stop|restart|status|kill-leader [CONF...]
#
# start returns when a leader has committed. stop ends only the processes that start made. Without CONF:
# conf/dledger/broker-n0.conf, -n1 and -n2. Logs and pid files are in dledger-fast-try-data (or DLEDGER_RUN_DIR).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

run_dir=${DLEDGER_RUN_DIR:-$repository/dledger-fast-try-data}
wait_s=30

usage() { say "usage: scripts/fast-try.sh start|stop|restart|status|kill-leader [CONF...]"; exit 2; }

[[ $# -ge 1 ]] || usage
action=$1
shift
confs=("$@")
if [[ ${#confs[@]} -eq 0 ]]; then
    confs=("$repository"/conf/dledger/broker-n{0,1,2}.conf)
fi

dledger() { "$venv/bin/python" -m dledger "$@"; }

# What is exported for clients must not become the settings of the nodes.
for variable in "${!DLEDGER_@}"; do
    [[ $variable == DLEDGER_PYTHON ]] || unset "$variable"
done

# Print the pid file of a CONF, or with a second argument that of another node of its group.
pid_file_of() {
    local group self_id
    { read -r group; read -r self_id; } < <(dledger config show -c "$1" | sed -n 's/^dLegerGroup=//p; s/^dLegerSelfId=//p')
    echo "$run_dir/$group-${2:-$self_id}.pid"
}

# A process id alone may have been given to someone else; with its start time it is ours.
started_at() { awk '{ sub(/.*\) /, ""); print $20 }' "/proc/$1/stat" 2>/dev/null || true; }

# Print the pid of the node of a pid file if that very process still runs.
live_pid() {
    local pid started
    [[ -f $1 ]] || return 1
    read -r pid started <"$1" || return 1
    [[ -n $pid && -n $started && $(started_at "$pid") == "$started" ]] || return 1
    # A zombie has ended already.
    [[ $(awk '{ sub(/.*\) /, ""); print $1 }' "/proc/$pid/stat" 2>/dev/null) != Z ]] || return 1
    echo "$pid"
}

check_confs() {
    dledger config check "${confs[@]}" >&2 || exit 4
}

start_node() {
    local conf=$1 pid_file=$2 name pid
    name=$(basename "$pid_file" .pid)
    if pid=$(live_pid "$pid_file"); then
        say "$name runs already (pid $pid)"
        return 0
    fi
    nohup "$venv/bin/python" -m dledger start -c "$conf" </dev/null >>"$run_dir/$name.log" 2>&1 &
    pid=$!
    disown "$pid"
    echo "$pid $(started_at "$pid")" >"$pid_file"
    say "$name started (pid $pid)"
}

start() {
    local conf pid_file code=0
    check_confs
    mkdir -p "$run_dir"
    for conf in "${confs[@]}"; do
        start_node "$conf" "$(pid_file_of "$conf")"
    done
    dledger status -c "${confs[0]}" --wait "$wait_s" --up "${#confs[@]}" || code=$?
    if [[ $code -ne 0 ]]; then
        for conf in "${confs[@]}"; do
            pid_file=$(pid_file_of "$conf")
            live_pid "$pid_file" >/dev/null || say "$(basename "$pid_file" .pid) has ended: $(tail -n 3 "${pid_file%.pid}.log")"
        done
        say "no leader after $wait_s s; logs in $run_dir"
    fi
    return "$code"
}

stop_node() {
    local pid_file=$1 name pid _
    name=$(basename "$pid_file" .pid)
    if ! pid=$(live_pid "$pid_file"); then
        say "$name does not run"
        rm -f "$pid_file"
        return 0
    fi
    kill -TERM "$pid"
    for _ in $(seq 100); do
        live_pid "$pid_file" >/dev/null || break
        sleep 0.1
    done
    if live_pid "$pid_file" >/dev/null; then
        say "$name does not end; kill -9"
        kill -KILL "$pid"
    fi
    rm -f "$pid_file"
    say "$name stopped (pid $pid)"
}

stop() {
    local conf
    for conf in "${confs[@]}"; do
        stop_node "$(pid_file_of "$conf")"
    done
}

leader_id() {
    dledger status -c "${confs[0]}" -o json 2>/dev/null |
        "$venv/bin/python" -c 'import json, sys; print(json.load(sys.stdin)["leader"] or "")' || true
}

kill_leader() {
    local leader pid_file pid began next table code=0
    leader=$(leader_id)
    [[ -n $leader ]] || { say "there is no leader"; exit 3; }
    pid_file=$(pid_file_of "${confs[0]}" "$leader")
    pid=$(live_pid "$pid_file") || die "the leader $leader was not started by this script"
    began=$(date +%s%N)
    kill -KILL "$pid"
    say "kill -9 $pid ($leader, the leader)"
    table=$(dledger status -c "${confs[0]}" --wait "$wait_s" --not "$leader") || code=$?
    echo "$table"
    next=$(sed -n '1s/.* leader \([^ ]*\) .*/\1/p' <<<"$table")
    # Most of this is the start of the command that asks; clients are served again after tens of milliseconds.
    say "${next:-nobody} leads; asked and answered $((($(date +%s%N) - began) / 1000000)) ms after the kill"
    return "$code"
}

ensure_venv "ui,fast"
case $action in
    start) start ;;
    stop) stop ;;
    restart) stop; start ;;
    status) dledger status -c "${confs[0]}" ;;
    kill-leader) kill_leader ;;
    *) usage ;;
esac
