#!/usr/bin/env bash
# A name server and three brokers on one replicated log, from conf/dledger, like RocketMQ's bin/dledger/fast-try.sh but
# with an end to it:
#
#   scripts/fast-try.sh start|stop|restart|status|kill-leader [CONF...]
#
# start returns when there is a master and every broker's log has caught up. stop ends only the processes that start
# made. Without CONF: conf/dledger/broker-n0.conf, -n1 and -n2. Brokers of several groups may be named together; the
# first CONF's group is the one that is waited for and whose master kill-leader kills. Logs and pid files are in
# dledger-fast-try-data (or DLEDGER_RUN_DIR).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

run_dir=${DLEDGER_RUN_DIR:-$repository/dledger-fast-try-data}
wait_s=${DLEDGER_WAIT_S:-60}

usage() { say "usage: scripts/fast-try.sh start|stop|restart|status|kill-leader [CONF...]"; exit 2; }

[[ $# -ge 1 ]] || usage
action=$1
shift
confs=("$@")
if [[ ${#confs[@]} -eq 0 ]]; then
    confs=("$repository"/conf/dledger/broker-n{0,1,2}.conf)
fi

# What is exported for clients must not become the settings of the nodes.
for variable in "${!DLEDGER_@}"; do
    [[ $variable == DLEDGER_PYTHON ]] || unset "$variable"
done
unset NAMESRV_ADDR

run() { PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}" "$venv/bin/python" -m "$@"; }
dledger() { run dledger "$@"; }
mqadmin() { run broker_adapter.admin "$@"; }

# Read the effective settings of every CONF: name[], port[], and group, namesrv, brokers (how many) of the first one's.
declare -A name port
read_confs() {
    local conf settings own
    brokers=0
    for conf in "${confs[@]}"; do
        settings=$(run broker_adapter.broker.main -c "$conf" -p) || exit 4
        setting() { sed -n "s/^$1=//p" <<<"$settings"; }
        [[ $(setting enableDLegerCommitLog) == true ]] ||
            { say "$conf: not a broker on a replicated log (enableDLegerCommitLog=true)"; exit 4; }
        own=$(setting dLegerGroup)
        name[$conf]=$own-$(setting dLegerSelfId)
        port[$conf]=$(setting listenPort)
        group=${group:-$own}
        broker_name=${broker_name:-$(setting brokerName)}
        namesrv=${namesrv:-$(setting namesrvAddr | cut -d';' -f1)}
        [[ $own != "$group" ]] || brokers=$((brokers + 1))
    done
    [[ -n $namesrv ]] || { say "${confs[0]}: namesrvAddr is not set"; exit 4; }
}

# A process id alone may have been given to someone else; with its start time it is ours.
started_at() { awk '{ sub(/.*\) /, ""); print $20 }' "/proc/$1/stat" 2>/dev/null || true; }

# Print the pid of a pid file if that very process still runs.
live_pid() {
    local pid started
    [[ -f $1 ]] || return 1
    read -r pid started <"$1" || return 1
    [[ -n $pid && -n $started && $(started_at "$pid") == "$started" ]] || return 1
    # A zombie has ended already.
    [[ $(awk '{ sub(/.*\) /, ""); print $1 }' "/proc/$pid/stat" 2>/dev/null) != Z ]] || return 1
    echo "$pid"
}

# launch NAME MODULE ARGUMENTS...
launch() {
    local name=$1 pid_file="$run_dir/$1.pid" pid
    shift
    if pid=$(live_pid "$pid_file"); then
        say "$name runs already (pid $pid)"
        return 0
    fi
    PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}" \
        nohup "$venv/bin/python" -m "$@" </dev/null >>"$run_dir/$name.log" 2>&1 &
    pid=$!
    disown "$pid"
    echo "$pid $(started_at "$pid")" >"$pid_file"
    say "$name started (pid $pid)"
}

# Print the address of the registered master of the first CONF's group, if there is one other than $1.
master_address() {
    mqadmin clusterList -n "$namesrv" -o json 2>/dev/null | "$venv/bin/python" -c '
import json, sys
try:
    rows = json.load(sys.stdin)
except ValueError:
    rows = []
masters = [r["address"] for r in rows if r["brokerName"] == sys.argv[1] and r["brokerId"] == 0 and r["up"]]
print(next((address for address in masters if address != sys.argv[2]), ""))' "$broker_name" "${1:-}"
}

# wait_for_master [NOT]: until there is a master (at another address than NOT), print it.
wait_for_master() {
    local found deadline=$((SECONDS + wait_s))
    while ((SECONDS < deadline)); do
        found=$(master_address "${1:-}")
        if [[ -n $found ]]; then
            echo "$found"
            return 0
        fi
        sleep 0.2
    done
    return 1
}

show() {
    mqadmin clusterList -n "$namesrv"
    echo
    mqadmin dledgerStatus -n "$namesrv"
}

tell_ended() {
    local conf log
    for conf in "${confs[@]}"; do
        log="$run_dir/${name[$conf]}.log"
        live_pid "$run_dir/${name[$conf]}.pid" >/dev/null || say "${name[$conf]} has ended: $(tail -n 3 "$log")"
    done
    live_pid "$run_dir/namesrv.pid" >/dev/null || say "namesrv has ended: $(tail -n 3 "$run_dir/namesrv.log")"
}

start() {
    local conf master
    mkdir -p "$run_dir"
    launch namesrv broker_adapter.namesrv.main --port "${namesrv##*:}"
    for conf in "${confs[@]}"; do
        launch "${name[$conf]}" broker_adapter.broker.main -c "$conf"
    done
    if ! dledger status -c "${confs[0]}" --wait "$wait_s" --up "$brokers" >/dev/null || ! master=$(wait_for_master); then
        tell_ended
        say "no master of all $brokers brokers after $wait_s s; logs in $run_dir"
        return 3
    fi
    say "master: $master"
    show
}

stop_one() {
    local name=$1 pid_file="$run_dir/$1.pid" pid _
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
        stop_one "${name[$conf]}"
    done
    stop_one namesrv
}

kill_leader() {
    local master conf pid began next
    master=$(master_address)
    [[ -n $master ]] || { say "there is no master"; exit 3; }
    for conf in "${confs[@]}"; do
        [[ ${master##*:} == "${port[$conf]}" ]] || continue
        pid=$(live_pid "$run_dir/${name[$conf]}.pid") || die "the master at $master was not started by this script"
        began=$(date +%s%N)
        kill -KILL "$pid"
        say "kill -9 $pid (${name[$conf]}, the master at $master)"
        next=$(wait_for_master "$master") || { say "no other master after $wait_s s"; exit 3; }
        # Most of this is the start of the command that asks; clients are served again after tens of milliseconds.
        say "master: $next; asked and answered $((($(date +%s%N) - began) / 1000000)) ms after the kill"
        show
        return 0
    done
    die "none of the files given is the master's ($master)"
}

case $action in
    start | stop | restart | status | kill-leader | kill-master) ;;
    *) usage ;;
esac
ensure_venv "ui,fast"
read_confs
case $action in
    start) start ;;
    stop) stop ;;
    restart) stop; start ;;
    status) show ;;
    kill-leader | kill-master) kill_leader ;;
esac
