#!/usr/bin/env bash
# ZooKeeper from Debian's packages, for tests and for trying it.
#
#   server.sh install           what it needs, if this machine lacks it and we may
#   server.sh serve DIR PORT    a server on 127.0.0.1:PORT, in place of this process, with its data in DIR;
#                               more lines of its configuration may be in ZOO_CFG
#   server.sh try               one in the foreground, its data gone when it ends: `make zookeeper`
set -euo pipefail
jar=/usr/share/java/zookeeper.jar
packages="default-jre-headless libzookeeper-java"

fail() { echo "zookeeper: $1" >&2; exit 1; }

is_installed() { [ -f "$jar" ] && command -v java >/dev/null; }

install() {
  is_installed && return
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    fail "$jar and java are needed; on Debian or Ubuntu: sudo apt-get install --no-install-recommends $packages"
  fi
  echo "zookeeper: installing $packages"
  # shellcheck disable=SC2086  # several packages
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $packages; } >/dev/null ||
    fail "apt-get could not install $packages"
  is_installed || fail "$packages brought no $jar or no java"
}

serve() {
  cat >"$1/zoo.cfg" <<CFG
tickTime=1000
dataDir=$1/data
clientPort=$2
clientPortAddress=127.0.0.1
admin.enableServer=false
maxClientCnxns=0
${ZOO_CFG:-}
CFG
  # Small and quick to start; what it keeps need not outlive the machine.
  exec java -Xmx64m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dzookeeper.forceSync=no -Dzookeeper.preAllocSize=64 \
    -cp "$jar" org.apache.zookeeper.server.quorum.QuorumPeerMain "$1/zoo.cfg"
}

# Whether a server on that port says that it serves.
serves() {
  { exec 3<>"/dev/tcp/127.0.0.1/$1" && printf srvr >&3 && grep -q '^Mode:' <&3; } 2>/dev/null
}

try() {
  install
  port=${ZOOKEEPER_PORT:-2181}
  if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    fail "port $port is taken by another program; ZOOKEEPER_PORT=2182 make zookeeper takes another"
  fi
  dir=$(mktemp -d)
  trap 'trap "" INT TERM; kill "$server" 2>/dev/null; wait; rm -rf "$dir"; echo; echo "zookeeper: gone, with its data"; exit 0' INT TERM
  "$0" serve "$dir" "$port" >"$dir/log" 2>&1 &
  server=$!
  until (serves "$port"); do
    kill -0 "$server" 2>/dev/null || { cat "$dir/log" >&2; rm -rf "$dir"; fail "the server ended"; }
    sleep 0.1
  done
  cat <<TEXT
ZooKeeper serves at 127.0.0.1:$port. Try, from other terminals:
  ZOOKEEPER=127.0.0.1:$port make local
  java -cp $jar org.apache.zookeeper.ZooKeeperMain -server 127.0.0.1:$port ls -R /tree-cache
Ctrl-C ends it, and its data is gone.
TEXT
  wait "$server" || true
  rm -rf "$dir"
  fail "the server ended"
}

case ${1:-} in
install | try) "$1" ;;
serve) serve "$2" "$3" ;;
*) fail "usage: server.sh install | serve DIR PORT | try" ;;
esac
