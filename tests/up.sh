#!/usr/bin/env bash
# Tests the tree in containers: `make test-up`.
#
# Two trees are made, one with `make` and one with Vagrant alone. On them: what the README promises of
# the commands, what a container may do, and what happens when containers die, stall, are cut off or
# start again. Each line is a claim; the last line is the count. Takes about four minutes,
# and two more where the images must be made first.
# What is needed for it is set up first, where it is not there (see .ci/docker-setup).
set -u
cd "$(dirname "$0")/.."
.ci/docker-setup || exit
export VAGRANT_CHECKPOINT_DISABLE=1
unset TREE_DEPTH API_PORT ROOT_NODE_ID STARTUP_DELAY ALLOWED_HOSTS

mark=tree-cache-test    # a volume that says that the tree which is here is this test's
if [ -n "$(docker ps -aq --filter label=tree-cache; docker network ls -q --filter 'name=^tree-cache$'
  docker volume ls -q --filter 'name=^tree-cache-(zookeeper|root)$')" ]; then
  if docker volume inspect "$mark" >/dev/null 2>&1; then
    echo "test-up: removing what a test that was interrupted has left"
    make -s down
  else
    echo "test-up: a tree is here already, and the test would remove it; \`make down\` first" >&2
    exit 1
  fi
fi
docker volume create "$mark" >/dev/null
. tests/claims.sh
clean_up() {
  docker rm -f tree-cache-test-port >/dev/null 2>&1
  make -s down
  rm -rf "$scratch"
}
trap clean_up EXIT
trap 'exit 1' INT TERM

# -- tools -------------------------------------------------------------------------------------

# free_ports FROM COUNT: the first port of so many free ones.
free_ports() {
  local base port
  for ((base = $1; base < $1 + 900; base += 100)); do
    for ((port = base; port < base + $2; port++)); do
      (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && continue 2
    done
    echo "$base"
    return
  done
  echo "test-up: no $2 free ports from $1 on" >&2
  exit 1
}

url() { echo "http://localhost:$((api_port + $1 - 1))"; }
ask() { curl -sS --noproxy '*' --max-time 10 "$@"; }

node() { echo "tree-cache-NODE-$1"; }
inspect() { docker inspect --format "$2" "tree-cache-$1"; }
# Where each node says that it is, from the root down to itself.
places() {
  local id path
  for ((id = 1; id <= size; id++)); do
    # "path":["NODE-1","NODE-3","NODE-7"] becomes NODE-1/NODE-3/NODE-7.
    path=$(ask "$(url "$id")" | sed -nE 's/.*"path":\["([^]]*)"\].*/\1/p')
    echo "${path//\",\"//}"
  done
}
places_are() { local now; now=$(places 2>&1); echo "$now"; [ "$now" = "$1" ]; }
parent_of() { ask "$(url "$1")" | sed -E 's/.*"parent":\{"name":"NODE-([0-9]+)".*/\1/'; }

# -- claims ------------------------------------------------------------------------------------

# ups_with TEXT COMMAND…: it succeeds, draws the tree, and says what to try.
ups_with() {
  local text=$1
  shift
  "$@" >"$scratch/up" 2>&1 || { cat "$scratch/up"; return 1; }
  cat "$scratch/up"
  grep -qxF "$text" "$scratch/up" && grep -q '^  curl -X PUT localhost:' "$scratch/up"
}

starts_are_apart() {
  local id time last=0
  for ((id = 1; id <= size; id++)); do
    # 2026-01-31T23:59:59.123Z; the day does not matter.
    IFS='T:.' read -r _ hours minutes seconds _ < <(inspect "NODE-$id" '{{.State.StartedAt}}')
    time=$(((10#$hours * 60 + 10#$minutes) * 60 + 10#$seconds))
    ((id == 1 || (time - last + 86400) % 86400 >= $1)) || { echo "NODE-$id started $((time - last)) s after the one before"; return 1; }
    last=$time
  done
}

status_lists_all() {
  local id
  make -s status | tee "$scratch/status"
  for ((id = 1; id <= size; id++)); do
    grep -q "NODE-$id  $(url "$id")\$" "$scratch/status" && grep -q "^$(node "$id") .* Up " "$scratch/status" || return 1
  done
}

logs_follow_all() {
  local logs
  # It goes on until it is ended; three seconds are enough for what is there.
  logs=$(timeout -s INT 3 make -s logs 2>&1)
  echo "$logs"
  [ "$(grep -o '^NODE-[0-9]* listening on' <<<"$logs" | sort -u | wc -l)" -eq "$size" ]
}

# The one check of registration: ZooKeeper's own client sees each node where the node says that it is.
zookeeper_has_the_tree() {
  local id path drawn
  drawn=$(make -s zk 2>&1)
  echo "$drawn"
  while IFS= read -r path; do
    id=${path##*NODE-}
    [ -n "$id" ] || { echo "a node does not say where it is"; return 1; }
    grep -q "^/tree-cache/tree/$path  {\"id\":$id,\"url\":\"http://NODE-$id:" <<<"$drawn" || { echo "missing: $path with its data"; return 1; }
    grep -qx "/tree-cache/live/NODE-$id" <<<"$drawn" || { echo "missing: live/NODE-$id"; return 1; }
  done < <(places)
  [ "$(grep -c '^/tree-cache/tree/' <<<"$drawn")" -eq "$size" ]
}

runs_as_ordinary_user() {
  local who
  who=$(docker exec "$(node 1)" id -u)
  echo "user $who"
  [ "$who" -ge 1000 ]
}

cannot_write() {
  ! docker exec "$(node 1)" touch /tmp/mark && [ "$(inspect NODE-1 '{{.HostConfig.ReadonlyRootfs}}')" = true ]
}

has_no_capability() {
  local container
  for container in NODE-1 zookeeper; do
    docker exec "tree-cache-$container" grep -E '^(Cap|NoNewPrivs)' /proc/self/status | tee "$scratch/status"
    ! grep -qE '^Cap.*:.*[1-9a-f]' "$scratch/status" || return 1
    grep -qE '^NoNewPrivs:[[:space:]]*1' "$scratch/status" || return 1
  done
}

has_limits() {
  local limits
  limits=$(inspect NODE-1 '{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}} {{.HostConfig.PidsLimit}}
    {{.HostConfig.RestartPolicy.Name}} {{index .HostConfig.LogConfig.Config "max-size"}}' | xargs)
  echo "$limits"
  [ "$limits" = "$((768 << 20)) $((768 << 20)) 4096 unless-stopped 10m" ]
}

# 800 clients that each send a body of 1 MB but for its last byte, and stay.
lives_under_800_bodies() {
  local number fd fds=() used done=0
  head -c 999999 /dev/zero | tr '\0' ' ' >"$scratch/body"
  for ((number = 0; number < 800; number++)); do
    exec {fd}<>"/dev/tcp/127.0.0.1/$((api_port + $1 - 1))" || { done=1; break; }
    fds+=("$fd")
    { printf 'PUT /store/large HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n'; cat "$scratch/body"; } >&"$fd" ||
      { done=1; break; }
  done
  put_then_reads "$1" "$1" among800 slate || done=1
  used=$(docker stats --no-stream --format '{{.MemUsage}}' "$(node "$1")")
  echo "NODE-$1 takes $used with ${#fds[@]} clients"
  for fd in "${fds[@]}"; do exec {fd}>&-; done
  [ "$(inspect "NODE-$1" '{{.RestartCount}}')" = 0 ] && [ "${#fds[@]}" = 800 ] && return $done
}

is_healthy() { local health; health=$(inspect "NODE-$1" '{{.State.Health.Status}}'); echo "$health"; [ "$health" = healthy ]; }

strangers_cannot_join() {
  local target status said=
  for target in /nodes http://root/nodes x/nodes http:/nodes; do
    status=$(ask --request-target "$target" -o "$scratch/join" -w '%{http_code}' "$(url "$root")" \
      -d '{"id":2,"run":1,"url":"http://stranger:1","position":null}')
    cat "$scratch/join"
    said+="$status "
  done
  [ "$said" = "401 401 400 400 " ]
}

token_is_private() {
  ls -l .tree-token
  [[ $(ls -l .tree-token) == -rw-------* ]] && git check-ignore -q .tree-token
}

# leaves_within SECONDS ID: it is stopped in so much time, in good order, and started again.
leaves_within() {
  local TIMEFORMAT=%R took
  took=$({ time docker stop "$(node "$2")" >/dev/null; } 2>&1)
  echo "stopped after $took s with $(inspect "NODE-$2" '{{.State.ExitCode}}')"
  [ "$(inspect "NODE-$2" '{{.State.ExitCode}}')" = 0 ] && docker start "$(node "$2")" && [ "${took%.*}" -lt "$1" ]
}
leaves_with_copies() { put_then_reads "$root" "$2" left plum && leaves_within "$@"; }

kill_and() { docker kill "$(node "$1")" && "${@:2}"; }
pause_and() { docker pause "$(node "$1")" && "${@:2}"; }
unpause_and() { docker unpause "$(node "$1")" && "${@:2}"; }
cut_and() { cut "$1" "$2" && "${@:3}"; }

# A crash is not what somebody wanted, as `docker kill` is, so the restart policy counts.
crash() {
  docker exec "$(node "$1")" sh -c 'kill -9 -1'
  eventually 15 restarted "$1"
}
restarted() { [ "$(inspect "NODE-$1" '{{.RestartCount}}')" -gt 0 ]; }

restarts_in_place() { docker restart "$(node "$1")" && eventually 30 places_are "$places"; }

# cut FROM TO, mend FROM TO: packets of one node to another are dropped; the other way they pass.
cut() { firewall "$1" "$2" -A; }
mend() { firewall "$1" "$2" -D; }
firewall() {
  local process address
  process=$(inspect "NODE-$1" '{{.State.Pid}}')
  address=$(inspect "NODE-$2" '{{(index .NetworkSettings.Networks "tree-cache").IPAddress}}')
  nsenter --target "$process" --net iptables "$3" OUTPUT --destination "$address" --jump DROP
}

# The child holds a copy when the cut comes.
reads_behind_cut() { put_then_reads "$root" "$2" told ash && cut_and "$1" "$2" put_then_reads "$root" "$2" told rust; }

# How often the root has begun to wait for the leases of a former root, in all its starts.
count_waits() { docker logs "$(node $root)" 2>&1 | grep -c 'no write finishes for'; }

# A write that is done within two seconds, by a root that has never had to wait.
writes_at_once() {
  local TIMEFORMAT=%R took done=0
  took=$({ time put "$leaf" "$1" "$2" >"$scratch/put" 2>&1; } 2>&1) || done=1
  cat "$scratch/put"
  echo "it took $took s; waits for former roots: $(count_waits)"
  [ "${took%.*}" -lt 2 ] && [ "$(count_waits)" = 0 ] && return $done
}

# Writes one key after another at a leaf, and lists those that are acknowledged, until a write is not.
write_until_refused() {
  local number
  : >"$scratch/acknowledged"
  for ((number = 1; number < 5000; number++)); do
    put "$leaf" "number$number" "$number" || return 0
    echo "$number" >>"$scratch/acknowledged"
  done
}

# Some writes are done when the root is killed, and one is under way.
kill_under_writes() {
  waits=$(count_waits)
  write_until_refused >"$scratch/writes" 2>&1 &
  local writer=$!
  eventually 20 has_lines "$scratch/acknowledged" 50
  docker kill "$(node $root)"
  wait "$writer"
  tail -n 1 "$scratch/writes"
  docker start "$(node $root)"
}
waits_again() { local now; now=$(count_waits); echo "$waits, now $now"; [ "$now" -gt "$waits" ]; }
has_lines() { [ "$(wc -l <"$1")" -ge "$2" ]; }

acknowledged_is_there() {
  local number
  has_lines "$scratch/acknowledged" 50 || return 1
  while read -r number; do
    reads "$1" "number$number" "$number" || return 1
  done <"$scratch/acknowledged"
}

works_while() { # works_while COMMAND…: a write and a read while that goes on
  local done=0
  "$@" >/dev/null &
  put_then_reads "$leaf" 1 while "$*" || done=1
  wait $! || done=1
  return $done
}

port_of_2_taken() {
  docker run --detach --name tree-cache-test-port --publish "127.0.0.1:$((api_port + 1)):1" --entrypoint sleep tree-cache 600 &&
    stops_saying "port $((api_port + 1)) is taken" make up && docker rm -f tree-cache-test-port
}

# All nodes have left in good order; a pause that Docker cuts short, or a kill, is another number.
halts() {
  make halt && nothing_runs || return 1
  docker ps -a --filter label=tree-cache.node --format '{{.Names}}: {{.Status}}' | tee "$scratch/status"
  [ "$(grep -c 'Exited (0)' "$scratch/status")" = "$size" ]
}
ups_as() { vagrant up && places_are "$1"; }
loses_vagrant() { rm -rf .vagrant && stops_saying 'tree-cache-zookeeper is left of an earlier tree' make up; }
nothing_runs() { [ -z "$(docker ps -q --filter label=tree-cache)" ]; }
nothing_is_left() {
  local left
  left=$(docker ps -aq --filter label=tree-cache; docker network ls -q --filter name=tree-cache
    docker volume ls -q --filter name=tree-cache; ls .tree-token 2>/dev/null)
  echo "$left"
  [ -z "$left" ]
}
removes_all() { "$@" && nothing_is_left; }

# -- the first tree, by make -------------------------------------------------------------------

size=7 root=1 leaf=7
api_port=$(free_ports 5000 $size) || exit
export API_PORT=$api_port

check "a wrong value stops with one message" \
  stops_saying 'tree-cache: TREE_DEPTH="three": must be a whole number from 1 to 7' env TREE_DEPTH=three make up
STARTUP_DELAY=2 check "make up starts seven nodes, draws them and says what to try" ups_with '7 of 7 nodes, depth 3' make up
check "the starts of two nodes are STARTUP_DELAY apart" starts_are_apart 2
check "a new tree's first write does not wait" writes_at_once first amber
check "the README's lines: written at NODE-7, read at NODE-4" put_then_reads 7 4 colour teal
check "make status lists all" status_lists_all
check "make logs shows what all nodes say" logs_follow_all
check "ZooKeeper has the tree" eventually 20 zookeeper_has_the_tree
check "another tree is refused while this one is here" \
  stops_saying 'but the tree that is here was made with 3' env TREE_DEPTH=4 make up

check "a node runs as an ordinary user" runs_as_ordinary_user
check "a node cannot write its file system" cannot_write
check "no container has a capability, or a way to gain one" has_no_capability
check "a node has limits of memory, processes and its log, and a restart policy" has_limits
check "the health check says healthy" eventually 20 is_healthy 1
check "who does not know the token cannot join" strangers_cannot_join
check "the token is its owner's only, and not in Git" token_is_private
check "800 clients with bodies of 1 MB do not end the root" lives_under_800_bodies $root
check "nor a leaf" lives_under_800_bodies $leaf

places=$(places)
inner=$(parent_of $leaf)
check "docker stop of a node with copies takes 1.1 leases, and it ends with 0" leaves_with_copies 9 $leaf
check "after docker start it has its place again" eventually 20 places_are "$places"
# On a busy machine the engine itself may take long, so the first try need not be the one.
check "docker stop of a node without copies takes less than two seconds" eventually 12 leaves_within 2 $leaf
check "the root is stopped, and starts again" leaves_within 9 $root
check "every node has its place again" eventually 20 places_are "$places"
check "and no write waits for the leases of the root that left" writes_at_once left lemon

# Each with a key that nobody has read yet: a copy could answer without the node in question.
check "an inner node is killed: its child reads on" kill_and "$inner" put_then_reads $root $leaf killed sky
check "vagrant up starts it again, and it takes its place" ups_as "$places"
check "a node that crashes is started again by Docker" crash "$inner"
check "and takes its place" eventually 20 places_are "$places"
check "an inner node is paused: its child reads on" pause_and "$inner" put_then_reads $leaf $leaf paused sand
check "after docker unpause it reads what was written" unpause_and "$inner" eventually 10 reads "$inner" paused sand
if [ "$(id -u)" = 0 ] && command -v nsenter >/dev/null && command -v iptables >/dev/null; then
  check "a child that cannot send to its parent reads on" cut_and $leaf "$inner" put_then_reads $root $leaf cut moss
  mend $leaf "$inner"
  check "a child that its parent cannot tell of a write reads what was written" reads_behind_cut "$inner" $leaf
  mend "$inner" $leaf
else
  skipped=2
  echo "skipped two one-way cuts, which take root, nsenter and iptables"
fi
check "ZooKeeper starts again: writes and reads go on meanwhile" works_while docker restart tree-cache-zookeeper
check "the root starts again: every node has its place again" restarts_in_place $root
check "and values can be written and read" eventually 20 put_then_reads $leaf 4 colour red
check "the root is killed under writes, and starts again" kill_under_writes
check "what was acknowledged is read at a leaf" eventually 20 acknowledged_is_there 4
check "it waits for the leases that it granted before" waits_again
check "then values can be written and read" eventually 20 put_then_reads $leaf 4 colour blue

check "make halt stops all, and all nodes end with 0" halts
check "a port that another program has stops make up with one message" port_of_2_taken
STARTUP_DELAY=0 check "make up after it makes the same tree" ups_with '7 of 7 nodes, depth 3' make up
check "each node has the place that it had" places_are "$places"
check "the root has what was acknowledged" acknowledged_is_there 4
check "ZooKeeper still has the tree" eventually 20 zookeeper_has_the_tree
check "vagrant destroy removes all" removes_all vagrant destroy -f

# -- the second tree, by Vagrant alone ---------------------------------------------------------

docker volume create "$mark" >/dev/null
size=15 root=3 leaf=15
api_port=$(free_ports 6000 $size) || exit
export TREE_DEPTH=4 ROOT_NODE_ID=3 API_PORT=$api_port STARTUP_DELAY=0
check "vagrant up alone starts fifteen nodes at once, below NODE-3" ups_with '15 of 15 nodes, depth 4' vagrant up
check "written at NODE-15, read at NODE-1" put_then_reads 15 1 colour teal
check "and at the root" reads 3 colour teal
unset TREE_DEPTH ROOT_NODE_ID API_PORT STARTUP_DELAY
check "when .vagrant is lost, make up says what to do" loses_vagrant
check "make down removes all, even then" removes_all make down

report
