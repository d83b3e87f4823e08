#!/usr/bin/env bash
# Tests the tree as a stack on a Docker Swarm, which it makes of this machine alone and leaves again: part of `make test-up`.
#
# Each line is a claim; the last line is the count. Takes about three minutes.
set -u
cd "$(dirname "$0")/.."
.ci/docker-setup || exit
unset TREE_DEPTH IMAGE PUBLISH ALLOWED_HOSTS MAX_STORE_BYTES MAX_VALUE_BYTES
export LEASE_SECONDS=1 HEALTH_INTERVAL=2s

refuse() { echo "test-up: $1" >&2; exit 1; }
[ "$(id -u)" = 0 ] && command -v nsenter >/dev/null || refuse "the test of the stack takes root and nsenter"

mark=tree-cache-test-swarm      # a volume that says that the Swarm which is here is this test's
volumes='^tree-cache_(zookeeper|root)$'
clean_up() {
  touch "$scratch/stop"
  docker rm -f "$client" >/dev/null 2>&1
  make -s stack-down >/dev/null 2>&1
  docker swarm leave --force >/dev/null 2>&1
  eventually 30 no_tasks
  docker network rm docker_gwbridge >/dev/null 2>&1
  docker volume ls -q --filter "name=$volumes" | xargs -r docker volume rm >/dev/null
  docker volume rm "$mark" >/dev/null 2>&1
  rm -rf "$scratch"
}
no_tasks() { [ -z "$(docker ps -aq --filter label=com.docker.stack.namespace=tree-cache)" ]; }

. tests/claims.sh
client=tree-cache-test-client
if docker volume inspect "$mark" >/dev/null 2>&1; then
  echo "test-up: removing the Swarm that a test which was interrupted has left"
  clean_up
  scratch=$(mktemp -d)
fi
[ "$(docker info --format '{{.Swarm.LocalNodeState}}')" = inactive ] ||
  refuse "this machine is in a Swarm already, and the test would leave it; \`docker swarm leave\` first"
[ -z "$(docker volume ls -q --filter "name=$volumes")" ] || refuse "a stack's volumes are here, and the test would remove them"
docker volume create "$mark" >/dev/null
trap clean_up EXIT
trap 'exit 1' INT TERM

# -- tools -------------------------------------------------------------------------------------

start_client() {
  docker run --detach --rm --name $client --network tree-cache_default debian:bookworm-slim sleep 1000 >/dev/null || exit
}

# in_network COMMAND…: a program of this machine, in the network of the stack and with its names, as a client there has it.
in_network() {
  nsenter --target "$(docker inspect --format '{{.State.Pid}}' $client)" --net \
    unshare --mount bash -c 'mount --bind "$0" /etc/resolv.conf && exec "$@"' \
    "$(docker inspect --format '{{.ResolvConfPath}}' $client)" "$@"
}
ask() { in_network curl -sS --noproxy '*' --max-time 10 "$@"; }

# Where each node is, by id; they are asked by name otherwise.
declare -A urls
learn_urls() {
  local id found
  for ((id = 1; id <= 7; id++)); do
    found=$(ask http://root:5000/nodes | grep -o "\"id\":$id,\"url\":\"[^\"]*" | cut -d'"' -f6)
    [ -n "$found" ] || { echo "where is NODE-$id?"; return 1; }
    urls[$id]=$found
  done
}
url() { echo "${urls[$1]}"; }

container_of() { docker ps -q --filter "label=com.docker.swarm.service.name=tree-cache_$1" | head -n 1; }
tasks() { docker ps -q --no-trunc --filter label=com.docker.stack.namespace=tree-cache | sort; }

# -- claims ------------------------------------------------------------------------------------

draws_all() {
  make -s stack >"$scratch/up" 2>&1 || { cat "$scratch/up"; return 1; }
  # From the list of services on.
  sed -n '/^ID  /,$p' "$scratch/up"
  grep -qE ' tree-cache_nodes +replicated +6/6 ' "$scratch/up" && grep -qE ' tree-cache_root +replicated +1/1 ' "$scratch/up" &&
    grep -qE ' tree-cache_zookeeper +replicated +1/1 ' "$scratch/up" && grep -qx '7 of 7 nodes, depth 3' "$scratch/up"
}

reads_at_all() {
  local id
  for ((id = 1; id <= 7; id++)); do reads "$id" "$@" || return 1; done
}
put_then_all_read() { learn_urls && put "$1" "$2" "$3" && reads_at_all "$2" "$3"; }
all_read() { learn_urls && reads_at_all "$@"; }
all_are_registered() {
  local id
  for ((id = 1; id <= 7; id++)); do
    ask "$(url "$id")/" | grep -o '"zookeeper":"[^"]*"' | tee "$scratch/state"
    grep -q '"registered"' "$scratch/state" || return 1
  done
}

curls_a_published_port() {
  local port
  port=$(docker port "$(container_of nodes)" 5000 | head -n 1)
  curl -sS --noproxy '*' --max-time 10 "localhost:${port##*:}/store/$1" | tee "$scratch/answer"
  [ "$(cat "$scratch/answer")" = "{\"value\":\"$2\"}" ]
}

strangers_cannot_join() {
  ask -w ' %{http_code}' http://root:5000/nodes -d '{"id":2,"run":1,"url":"http://stranger:1","position":null}' | tee "$scratch/join"
  grep -q ' 401$' "$scratch/join"
}

is_confined() {
  docker exec "$(container_of "$1")" sh -c 'id -u; ls -ln /run/secrets/token; grep CapBnd /proc/self/status; touch /mark' | tee "$scratch/status"
  [ "$(sed -n 1p "$scratch/status")" = 10001 ] && grep -q '^-r-------- 1 10001 ' "$scratch/status" &&
    grep -qx 'CapBnd:[[:space:]]*0*' "$scratch/status" && ! docker exec "$(container_of "$1")" touch /mark
}

changes_nothing() {
  local before
  before=$(tasks)
  make -s stack && [ "$before" = "$(tasks)" ]
}

kill_root() { docker kill "$(container_of root)" && eventually 60 all_read "$@"; }

# One client that asks for nodes by their name: nine reads, one write, and so on, a connection each. It lists what it was told.
keep_asking() {
  local number=0 arguments
  until [ -e "$scratch/stop" ]; do
    number=$((number + 1)) arguments=()
    ((number % 10)) || arguments=(-X PUT -d '{"value":1}')
    curl -sS --noproxy '*' --max-time 10 -o /dev/null -w '%{method} %{http_code} %{time_total}\n' "${arguments[@]}" \
      "http://nodes:5000/store/load$((number % 7))" || echo broke
  done >"$scratch/told.$1" 2>&1
}

updates_under_load() {
  local number before same
  for ((number = 0; number < 7; number++)); do put 1 "load$number" 1 || return 1; done
  before=$(tasks)
  for number in 1 2 3 4; do
    in_network env scratch="$scratch" bash -c "$(declare -f keep_asking); keep_asking $number" &
  done
  eventually 20 has_told 40 || return 1
  docker service update --quiet --force tree-cache_nodes
  eventually 120 is_updated
  touch "$scratch/stop"
  wait
  cat "$scratch"/told.* | awk '{ calls[$1 " " $2]++; if ($3 > slowest[$1]) slowest[$1] = $3 }
    END { for (call in calls) print call, calls[call]; for (call in slowest) print "slowest", call, slowest[call] }' | sort | tee "$scratch/calls"
  same=$(comm -12 <(echo "$before") <(tasks) | wc -l)
  echo "$same containers are as they were"
  [ "$same" = 2 ] && [ "$(grep -c '^[GP][EU]T 200 ' "$scratch/calls")" = 2 ] &&
    ! grep -v -e '^[GP][EU]T 200 ' -e '^slowest' "$scratch/calls"
}
has_told() { [ "$(cat "$scratch"/told.* | wc -l)" -ge "$1" ]; }
is_updated() { [ "$(docker service inspect --format '{{.UpdateStatus.State}}' tree-cache_nodes)" = completed ]; }

removes_the_stack() {
  docker rm -f $client
  make -s stack-down || return 1
  no_tasks && [ -z "$(docker service ls -q; docker secret ls -q; docker network ls -q --filter name=tree-cache)" ] &&
    [ "$(docker volume ls -q --filter "name=$volumes" | wc -l)" = 2 ]
}

# -- the stack ---------------------------------------------------------------------------------

check "without a Swarm make stack says what to do" stops_saying 'docker swarm init' make -s stack
docker swarm init --advertise-addr 127.0.0.1 --listen-addr 127.0.0.1 >/dev/null || exit
check "a wrong value stops with one message" stops_saying 'TREE_DEPTH="8": must be a whole number from 1 to 7' env TREE_DEPTH=8 make -s stack
PUBLISH=0 check "make stack starts seven nodes and ZooKeeper, and draws them" draws_all
cat "$scratch/out"
start_client
check "written at one node, read at all" put_then_all_read 4 colour teal
check "and with curl at a node's port on this machine" curls_a_published_port colour teal
check "every node is registered in ZooKeeper" eventually 20 all_are_registered
check "who does not know the token cannot join" strangers_cannot_join
check "the root is an ordinary user that can write nothing but its data" is_confined root
check "and so are the others" is_confined nodes
PUBLISH=0 check "make stack again changes nothing" changes_nothing
check "another depth is refused while this one is here" stops_saying 'was made with 3' env TREE_DEPTH=4 make -s stack
check "the root's container is killed: another has its data, and all nodes read it" kill_root colour teal
check "the nodes are updated one after another under load, and no request fails" updates_under_load
cat "$scratch/out"
check "then each node has its place, and reads what was written" eventually 20 all_read colour teal
check "make stack-down removes all but the data" removes_the_stack
check "make stack after it has what was written" draws_all
start_client
check "and all nodes read it" eventually 20 all_read colour teal

report
