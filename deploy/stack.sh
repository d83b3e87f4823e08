#!/usr/bin/env bash
# The tree as a stack on the Docker Swarm of which this machine is a manager: `make stack` and `make stack-down`.
#
#   stack.sh up      deploys deploy/stack.yml, anew or as an update, waits until each node has its place, and draws the tree
#   stack.sh down    removes it; the root's entries stay in its volume
#
# From the environment: TREE_DEPTH (3); IMAGE, which every machine must be able to fetch (unset: it is built here, which
# serves a Swarm of one machine); PUBLISH, the port of each node on its machine (0: any free one; unset: none, and only
# containers on the network tree-cache_default reach the nodes); HEALTH_INTERVAL (5s); and what is passed on to the nodes.
set -uo pipefail
cd "$(dirname "$0")/.."
name=tree-cache
wait_limit=180  # seconds; images may have to be fetched

fail() { echo "make stack: $1" >&2; exit 1; }

expect_manager() {
  local role
  role=$(docker info --format '{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}' 2>/dev/null) || fail "Docker does not answer"
  [ "$role" = "active true" ] || fail "this machine is no manager of a Swarm; \`docker swarm init\` makes it the first one"
}

services() { docker service ls --filter "label=com.docker.stack.namespace=$name" "$@"; }

read_settings() {
  local made lease=${LEASE_SECONDS:-5}
  export TREE_DEPTH=${TREE_DEPTH:-3}
  [[ $TREE_DEPTH =~ ^[1-7]$ ]] || fail "TREE_DEPTH=\"$TREE_DEPTH\": must be a whole number from 1 to 7"
  [[ $lease =~ ^[0-9]+(\.[0-9]+)?$ ]] || fail "LEASE_SECONDS=\"$lease\": must be a number of seconds"
  [[ ${PUBLISH:-0} =~ ^[0-9]{1,5}$ ]] || fail "PUBLISH=\"$PUBLISH\": must be a port, or 0 for any free one"
  made=$(docker service inspect --format '{{.Spec.Labels.TREE_DEPTH}}' "${name}_nodes" 2>/dev/null) || made=$TREE_DEPTH
  [ "$made" = "$TREE_DEPTH" ] || fail "TREE_DEPTH=$TREE_DEPTH, but the stack that is here was made with $made; make stack-down removes it"
  export ROOT_NODE_ID=$(((1 << TREE_DEPTH) - 1))
  export NODES=$((ROOT_NODE_ID - 1))
  STOP_LIMIT=$(awk "BEGIN { limit = 2.2 * $lease + 8; print int(limit) + (limit > int(limit)) }")s
  export STOP_LIMIT
}

# The root's entries are in a volume of one machine: this one, unless one has them already.
choose_home() {
  [ -n "$(docker node ls -q --filter node.label=tree-cache-root=true)" ] ||
    docker node update --label-add tree-cache-root=true "$(docker info --format '{{.Swarm.NodeID}}')" >/dev/null
}

make_token() {
  docker secret inspect "$name-token" >/dev/null 2>&1 ||
    head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' | docker secret create "$name-token" - >/dev/null
}

# The ports, if any, as a second file.
published() {
  echo 'version: "3.9"'
  [ -n "${PUBLISH:-}" ] || return
  echo "services: { root: &node { ports: [{ target: 5000, published: $PUBLISH, mode: host }] }, nodes: *node }"
}

# Which services have tasks that are not healthy yet, or not of the newest kind; a node is healthy when it has its place.
unfinished() {
  services --format '{{.Name}} {{.Replicas}}' | while read -r service replicas; do
    state=$(docker service inspect --format '{{with .UpdateStatus}}{{.State}}{{end}}' "$service")
    [ "$state" != paused ] || fail "the update of $service failed; see: docker service ps $service"
    [ "${replicas%/*}" = "${replicas#*/}" ] && [ "$state" != updating ] || echo -n "$service $replicas  "
  done
}

wait_for_places() {
  local waiting next_report=5
  SECONDS=0
  while waiting=$(unfinished) || exit 1; [ -n "$waiting" ]; do
    ((SECONDS < wait_limit)) || fail "not all nodes have their place after $wait_limit s: $waiting; see: docker service ps ${name}_nodes"
    ((SECONDS < next_report)) || { echo "waiting for $waiting"; next_report=$((SECONDS + 5)); }
    sleep 0.5
  done
}

draw_tree() {
  local root
  services
  echo
  root=$(docker ps -q --filter "label=com.docker.swarm.service.name=${name}_root")
  if [ -z "$root" ]; then
    echo "The root is on another machine; there this draws the tree: docker exec <its container> tree-cache show"
    return
  fi
  docker exec "$root" tree-cache show
  echo
  if [ -n "${PUBLISH:-}" ]; then
    root=$(docker port "$root" 5000 | head -n 1)
    echo "Each node has a port on its machine (docker service ps ${name}_nodes). Try the root's:"
    echo "  curl -X PUT localhost:${root##*:}/store/colour -d '{\"value\":\"teal\"}'"
  else
    echo "Containers on the network ${name}_default ask http://nodes:5000."
  fi
}

up() {
  # Whoever has several machines names an image that is in a registry, and Swarm then asks there what its tag means.
  local resolve=always
  expect_manager
  read_settings
  if [ -z "${IMAGE:-}" ]; then
    resolve=never
    docker build -t "$name" . || fail "the image could not be built"
  fi
  choose_home
  make_token
  docker stack deploy --prune --resolve-image $resolve --compose-file deploy/stack.yml --compose-file <(published) "$name" ||
    fail "Swarm did not take it"
  wait_for_places
  draw_tree
}

down() {
  expect_manager
  docker stack rm "$name" >/dev/null 2>&1
  SECONDS=0
  # Swarm keeps the network as long as anything is attached to it.
  until [ -z "$(tasks_here)" ] && ! docker network inspect "${name}_default" >/dev/null 2>&1; do
    ((SECONDS < wait_limit)) ||
      fail "something is still attached after $wait_limit s; see: docker network inspect ${name}_default"
    sleep 0.5
    docker network rm "${name}_default" >/dev/null 2>&1
  done
  docker secret rm "$name-token" >/dev/null 2>&1
  echo "The stack is removed. The root's entries stay in the volume ${name}_root, on the machine with the label tree-cache-root."
}
tasks_here() { docker ps -aq --filter "label=com.docker.stack.namespace=$name"; }

case ${1-} in
  up) up ;;
  down) down ;;
  *) fail "usage: stack.sh up | down" ;;
esac
