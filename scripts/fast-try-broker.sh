#!/usr/bin/env bash
# A name server and three brokers on one replicated log, from conf/dledger, like RocketMQ's bin/dledger/fast-try.sh but
# with an end to it:
#
#   scripts/fast-try-broker.sh start|stop|restart|status|kill-leader [CONF...]
#
# start returns when there is a master. stop ends only the processes that start made. Without CONF:
# conf/dledger/broker-n0.conf, -n1 and -n2. Logs and pid files are in dledger-fast-try-broker-data (or DLEDGER_RUN_DIR).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

run_dir=${DLEDGER_RUN_DIR:-$repository/dledger-fast-try-broker-data}
wait_s=${DLEDGER_WAIT_S:-60}

usage() { say "usage: scripts/fast-try-broker.sh start|stop|restart|status|kill-leader [CONF...]"; exit 2; }

[[ $# -ge 1 ]] || usage
action=$1
shift
confs=("$@")
if [[ ${#confs[@]} -eq 0 ]]; then
    confs=("$repository"/conf/dledger/broker-n{0,1,2}.conf)
fi

mqnamesrv=(broker_adapter.namesrv.main)
mqbroker=(broker_adapter.broker.main)
run() { PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}" "$venv/bin/python" -m "$@"; }
mqadmin() { run broker_adapter.admin "$@"; }

# One effective setting of a CONF.
setting() { run "${mqbroker[@]}" -c "$1" -p | sed -n "s/^$2=//p"; }

namesrv_address() { setting "${confs[0]}" namesrvAddr | cut -d';' -f1; }

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

name_of() { basename "$1" .conf; }

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

# The address of the master of the first CONF's broker name, if there is one.
master_address() {
    mqadmin clusterList -n "$1" -o json 2>/dev/null | "$venv/bin/python" -c '
import json, sys
try:
    rows = json.load(sys.stdin)
except ValueError:
    rows = []
print(next((r["address"] for r in rows if r["brokerName"] == sys.argv[1] and r["brokerId"] == 0 and r["up"]), ""))' "$2"
}

wait_for_master() {
    local namesrv=$1 name=$2 not=${3:-} found deadline=$((SECONDS + wait_s))
    while ((SECONDS < deadline)); do
        found=$(master_address "$namesrv" "$name")
        if [[ -n $found && $found != "$not" ]]; then
            echo "$found"
            return 0
        fi
        sleep 0.2
    done
    return 1
}

start() {
    local conf namesrv master
    for conf in "${confs[@]}"; do
        run "${mqbroker[@]}" -c "$conf" -m >/dev/null || exit 4
    done
    mkdir -p "$run_dir"
    namesrv=$(namesrv_address)
    launch namesrv "${mqnamesrv[@]}" --port "${namesrv##*:}"
    for conf in "${confs[@]}"; do
        launch "$(name_of "$conf")" "${mqbroker[@]}" -c "$conf"
    done
    if master=$(wait_for_master "$namesrv" "$(setting "${confs[0]}" brokerName)"); then
        say "master: $master"
        status
        return 0
    fi
    for conf in "${confs[@]}"; do
        live_pid "$run_dir/$(name_of "$conf").pid" >/dev/null ||
            say "$(name_of "$conf") has ended: $(tail -n 3 "$run_dir/$(name_of "$conf").log")"
    done
    say "no master after $wait_s s; logs in $run_dir"
    return 3
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
        stop_one "$(name_of "$conf")"
    done
    stop_one namesrv
}

status() {
    local namesrv
    namesrv=$(namesrv_address)
    mqadmin clusterList -n "$namesrv"
    mqadmin dledgerStatus -n "$namesrv"
}

kill_leader() {
    local namesrv name master conf pid began next port
    namesrv=$(namesrv_address)
    name=$(setting "${confs[0]}" brokerName)
    master=$(master_address "$namesrv" "$name")
    [[ -n $master ]] || { say "there is no master"; exit 3; }
    for conf in "${confs[@]}"; do
        port=$(setting "$conf" listenPort)
        [[ ${master##*:} == "$port" ]] || continue
        pid=$(live_pid "$run_dir/$(name_of "$conf").pid") || die "the master was not started by this script"
        began=$(date +%s%N)
        kill -KILL "$pid"
        say "kill -9 $pid ($(name_of "$conf"), the master at $master)"
        next=$(wait_for_master "$namesrv" "$name" "$master") || { say "no other master after $wait_s s"; exit 3; }
        # Most of this is the start of the command that asks.
        say "master: $next; asked and answered $((($(date +%s%N) - began) / 1000000)) ms after the kill"
        status
        return 0
    done
    die "none of the files given is the master's"
}

ensure_venv "ui,fast"
case $action in
    start) start ;;
    stop) stop ;;
    restart) stop; start ;;
    status) status ;;
    kill-leader | kill-master) kill_leader ;;
    *) usage ;;
esac
