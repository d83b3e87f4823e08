#!/usr/bin/env bash
# The whole tree as processes of this machine, without Docker: `make local`.
#
#   local.sh PROGRAM
#
# Node i listens on API_PORT + i - 1. The root starts first, then the others, each when the one
# before it has its place: so the order of ids is the order of places. Ctrl-C or TERM ends all.
set -u
program=$1
# Else glibc gives threads heaps of their own, and their leavings grow for half an hour before they stop.
export MALLOC_ARENA_MAX=${MALLOC_ARENA_MAX:-1}
# Nor is a buffer for a body that never comes touched then (see docs/operating.md).
export MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_:-1048576}
export TREE_DEPTH=${TREE_DEPTH:-3} ROOT_NODE_ID=${ROOT_NODE_ID:-1}
base=${API_PORT:-5000}

fail() { echo "make local: $1" >&2; exit 1; }

for variable in TREE_DEPTH ROOT_NODE_ID base; do
  [[ ${!variable} =~ ^[1-9][0-9]{0,4}$ ]] || fail "${variable/base/API_PORT}=\"${!variable}\": must be a whole number over 0"
done
size=$(((1 << TREE_DEPTH) - 1))
((TREE_DEPTH <= 7)) || fail "TREE_DEPTH=$TREE_DEPTH: must be at most 7, which is 127 processes"
((ROOT_NODE_ID <= size)) || fail "ROOT_NODE_ID=$ROOT_NODE_ID: must be a whole number from 1 to $size"
((base + size <= 65536)) || fail "API_PORT=$base: no room for $size ports up to 65535"

ids=("$ROOT_NODE_ID")
for ((id = 1; id <= size; id++)); do
  ((id == ROOT_NODE_ID)) || ids+=("$id")
done
port_of() { echo $((base + $1 - 1)); }
# Where the nodes reach each other, on whatever address they listen; what else is set must not break the tree.
export BIND_ADDR=${BIND_ADDR:-127.0.0.1}
case $BIND_ADDR in 0.0.0.0) host=127.0.0.1 ;; ::) host=::1 ;; *) host=$BIND_ADDR ;; esac
url_of() { [[ $host == *:* ]] && echo "http://[$host]:$1" || echo "http://$host:$1"; }
ROOT_URL=$(url_of "$(port_of "$ROOT_NODE_ID")")
export ROOT_URL

# The nodes' shared secret, in a file that only its owner can read. It stays, so that a second run fits what the first
# has left.
if [ -z "${TREE_TOKEN:-}${TREE_TOKEN_FILE:-}" ]; then
  unset TREE_TOKEN
  TREE_TOKEN_FILE=$(cd "$(dirname "$0")/.." && pwd)/.local-token
  export TREE_TOKEN_FILE
  if [ -e "$TREE_TOKEN_FILE" ]; then
    [ -s "$TREE_TOKEN_FILE" ] || fail "$TREE_TOKEN_FILE is empty; remove it, and another is made"
  else
    new=$(mktemp "$TREE_TOKEN_FILE.XXXXXX") || fail "could not make $TREE_TOKEN_FILE"
    head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$new"
    # Another run may be making it as well; then all take what was there first.
    ln "$new" "$TREE_TOKEN_FILE" 2>/dev/null
    rm "$new"
  fi
fi

for id in "${ids[@]}"; do
  port=$(port_of "$id")
  if (exec 3<>"/dev/tcp/$host/$port") 2>/dev/null; then
    fail "port $port is taken by another program; nothing was started. API_PORT=6000 make local takes others"
  fi
done

scratch=$(mktemp -d) || fail "could not make a temporary folder"    # what each node prints once it has its place
trap 'rm -rf "$scratch"' EXIT
# The root's entries go with the tree, unless the caller says where they stay.
export DATA_DIR=${DATA_DIR:-$scratch/data}
# Nobody listens where a tree would, so there is none: a root with an empty folder need not wait for a former one's copies.
export NEW_TREE=1

pids=()                 # of the processes that this script started, by id
# The root leaves first, and the others at once: without it there is nothing that they need wait for. A second signal
# reaches all, and ends them where they stand.
stop() {
  trap 'kill "${pids[@]}" 2>/dev/null' INT TERM
  end ${pids[ROOT_NODE_ID]-}
  end "${pids[@]}"
  exit "$1"
}
end() {
  kill "$@" 2>/dev/null
  # A signal interrupts the wait.
  while kill -0 "$@" 2>/dev/null; do wait "$@" 2>/dev/null; done
}
trap 'echo; echo "stopping ${#pids[@]} nodes (once more: at once)"; stop 0' INT TERM

for id in "${ids[@]}"; do
  port=$(port_of "$id")
  NODE_ID=$id API_PORT=$port NODE_URL=$(url_of "$port") "$program" >"$scratch/$id" &
  pids[id]=$!
  until [ -s "$scratch/$id" ]; do
    kill -0 "${pids[id]}" 2>/dev/null || { echo "make local: NODE-$id ended" >&2; unset "pids[id]"; stop 1; }
    sleep 0.05
  done
  cat "$scratch/$id"
done

echo
"$program" show
leaf=$(port_of "${ids[size - 1]}") other=$(port_of "${ids[size / 2]}")
cat <<TEXT

Try, from another terminal:
  curl -X PUT localhost:$leaf/store/colour -d '{"value":"teal"}'
  curl localhost:$other/store/colour
Ctrl-C ends all $size nodes.
TEXT

while ((${#pids[@]})); do
  for id in "${!pids[@]}"; do
    if ! kill -0 "${pids[id]}" 2>/dev/null; then
      wait "${pids[id]}" 2>/dev/null
      echo "make local: NODE-$id (process ${pids[id]}) ended with status $?; the others go on" >&2
      unset "pids[id]"
    fi
  done
  sleep 0.5
done
fail "no node is left"
