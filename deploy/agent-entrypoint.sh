#!/usr/bin/env bash
# Starts an agent from a container's environment:
#   RELAY_COORDINATOR    host:port of the coordinator         (or COMMANDER_URL, as an address or a URL)
#   RELAY_SHARED_SECRET  what the coordinator was started with (or RELAY_SHARED_SECRET_FILE, a file that holds it);
#                        needed unless the coordinator is on this machine
#   RELAY_AGENT_NAME     this host's name                     (or WORKER_ID; default: the host's own)
#   RELAY_L1_ROOT        where runs and checkpoints are kept  (default /mnt/relay)
# Further arguments go to relay-agent. Exit 78 means that the configuration is wrong: restarting will not help.
set -euo pipefail

refuse() {
    echo "agent-entrypoint: $*" >&2
    exit 78 # EX_CONFIG
}

address_of() { # [scheme://]host[:port][/path] -> host:port
    local address=${1#*://}
    address=${address%%/*}
    case $address in
        *:*) echo "$address" ;;
        *) echo "$address:7070" ;;
    esac
}

coordinator=${RELAY_COORDINATOR:-${COMMANDER_URL:-}}
[[ -n $coordinator ]] || refuse "RELAY_COORDINATOR is not set: the coordinator's host:port"
RELAY_COORDINATOR=$(address_of "$coordinator")
[[ $RELAY_COORDINATOR =~ ^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$ ]] ||
    refuse "'$coordinator' is not an address; expected host:port"

name=${RELAY_AGENT_NAME:-${WORKER_ID:-$HOSTNAME}}
RELAY_AGENT_NAME=${name,,}
[[ $RELAY_AGENT_NAME =~ ^[a-z0-9][a-z0-9._-]{0,127}$ ]] ||
    refuse "'$name' cannot name an agent; letters, digits, '.', '_' and '-', a letter or digit first"

case $RELAY_COORDINATOR in
    127.* | localhost:* | '[::1]':*) ;;
    *) [[ -n ${RELAY_SHARED_SECRET:-}${RELAY_SHARED_SECRET_FILE:-} ]] ||
        refuse "RELAY_SHARED_SECRET is not set: $RELAY_COORDINATOR is not on this machine" ;;
esac

RELAY_L1_ROOT=${RELAY_L1_ROOT:-/mnt/relay}
{ mkdir -p "$RELAY_L1_ROOT" && [[ -w $RELAY_L1_ROOT ]]; } 2> /dev/null ||
    refuse "RELAY_L1_ROOT=$RELAY_L1_ROOT cannot be written; mount a volume there or name another folder"

for old in RUN_ID MODE RELAY_RUN_CONFIG; do
    [[ -z ${!old:-} ]] || echo "agent-entrypoint: $old is ignored: runs are submitted to the coordinator (relayctl submit)" >&2
    unset "$old"
done

export RELAY_COORDINATOR RELAY_AGENT_NAME RELAY_L1_ROOT
exec relay-agent "$@"
