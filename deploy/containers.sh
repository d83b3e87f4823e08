#!/usr/bin/env bash
# The tree in containers, beyond what Vagrant does: `make up`, `status`, `logs`, `zk` and `down`.
#
#   containers.sh ready     waits until every node has its place, draws the tree, and says what to try
#   containers.sh status    draws the tree, and lists the containers
#   containers.sh logs      shows what the nodes log, until Ctrl-C
#   containers.sh halt      stops it: the root first, then all others at once
#   containers.sh zk        draws the tree as ZooKeeper has it, read with its own client
#   containers.sh remove    removes all of the tree, however it was left
set -uo pipefail
cd "$(dirname "$0")/.."
name=tree-cache
wait_limit=90   # seconds; a node gives up on its root after 60

fail() { echo "tree-cache: $1" >&2; exit 1; }

# What the tree was made with stands on its network; see the Vagrantfile.
read_settings() {
  local labels
  labels=$(docker network ls --filter "name=^$name$" \
    --format '{{.Label "TREE_DEPTH"}} {{.Label "API_PORT"}} {{.Label "ROOT_NODE_ID"}}') || fail "Docker does not answer"
  [ -n "$labels" ] || fail "no tree is here; make up starts one"
  read -r depth api_port root_id <<<"$labels"
  size=$(((1 << depth) - 1))
}

port_of() { echo $((api_port + $1 - 1)); }

has_place() {
  [[ $(curl -fs --noproxy '*' --max-time 2 "http://127.0.0.1:$(port_of "$1")/") == *'"joined":true'* ]]
}

wait_for_places() {
  local id next_report=5
  command -v curl >/dev/null || fail "curl is not installed, so nobody can ask the nodes"
  SECONDS=0
  for ((id = 1; id <= size; id++)); do
    until has_place "$id"; do
      ((SECONDS < wait_limit)) || fail "NODE-$id has no place after $wait_limit s; see: docker logs $name-NODE-$id"
      if ((SECONDS >= next_report)); then
        echo "waiting for NODE-$id to get its place"
        next_report=$((SECONDS + 5))
      fi
      sleep 0.5
    done
  done
}

# The nodes know each other by names that only their network resolves; here they are localhost's.
draw_tree() {
  local line
  docker exec "$name-NODE-$root_id" tree-cache show | while IFS= read -r line; do
    if [[ $line =~ ^(.*)http://NODE-([0-9]+):[0-9]+(.*)$ ]]; then
      line="${BASH_REMATCH[1]}http://localhost:$(port_of "${BASH_REMATCH[2]}")${BASH_REMATCH[3]}"
    fi
    echo "$line"
  done
}

say_what_to_try() {
  local leaf=$size other=$((size / 2 + 1))
  cat <<TEXT

Try:
  curl -X PUT localhost:$(port_of "$leaf")/store/colour -d '{"value":"teal"}'
  curl localhost:$(port_of "$other")/store/colour
TEXT
}

list_containers() {
  docker ps -a --filter "label=$name" --format 'table {{.Names}}\t{{.Status}}\t{{.Ports}}'
}

# All at once, a process each: every line begins with its node's name.
follow_logs() { docker ps -aq --filter "label=$name.node" | xargs -n 1 -P "$size" docker logs --tail 20 --follow; }

ask_zookeeper() { docker exec -i "$name-zookeeper" zkCli.sh "$@" 2>/dev/null; }

draw_zookeeper() {
  local paths data path id
  # The client prints much about itself as well; a path begins with a slash, a node's data with a brace.
  paths=$(ask_zookeeper ls -R "/$name" </dev/null | grep "^/$name/[a-z]*/" | sort)
  [ -n "$paths" ] || fail "ZooKeeper has no tree (yet), or does not answer; see: docker logs $name-zookeeper"
  data=$(sed -n "s,^/$name/tree/,get &,p" <<<"$paths" | ask_zookeeper | grep -o '{"id":.*}')
  while IFS= read -r path; do
    id=${path##*/NODE-}
    if [[ $path == "/$name/tree/"* ]]; then
      echo "$path  $(grep "{\"id\":$id," <<<"$data")"
    else
      echo "$path"
    fi
  done <<<"$paths"
}

# Where the root has left the others need not wait for anything.
halt_tree() {
  local root=$name-NODE-$root_id
  docker stop "$root" >/dev/null
  docker ps -q --filter "label=$name" | xargs -r docker stop >/dev/null
}

# By label, since Vagrant forgets what was made in a run that broke off, or when .vagrant is lost.
remove_tree() {
  docker info >/dev/null 2>&1 || fail "Docker does not answer, so nothing is removed"
  docker ps -aq --filter "label=$name" | xargs -r docker rm --force --volumes >/dev/null
  docker network ls -q --filter "name=^$name$" | xargs -r docker network rm >/dev/null
  docker volume ls -q --filter "name=^$name-(zookeeper|root|test)$" | xargs -r docker volume rm >/dev/null
  rm -rf .vagrant .tree-token
}

case ${1-} in
  ready) read_settings; wait_for_places; echo; draw_tree && say_what_to_try ;;
  status) read_settings; draw_tree; echo; list_containers ;;
  logs) read_settings; follow_logs ;;
  halt) read_settings; halt_tree ;;
  zk) read_settings; draw_zookeeper ;;
  remove) remove_tree ;;
  *) fail "usage: containers.sh ready | status | logs | halt | zk | remove" ;;
esac
