# What the tests of containers share: claims, which are counted, and a write and a read. Who sources it says with `url ID`
# where a node is, and with `ask` how to get there with curl.

scratch=$(mktemp -d)
passed=0 failed=0 skipped=0

# check CLAIM COMMAND…: the claim holds if the command succeeds. What it prints is shown if it does not.
check() {
  local claim=$1 before=$SECONDS
  shift
  if "$@" >"$scratch/out" 2>&1 </dev/null; then
    passed=$((passed + 1))
    echo "ok      $claim ($((SECONDS - before)) s)"
  else
    failed=$((failed + 1))
    echo "FAILED  $claim ($((SECONDS - before)) s)"
    tail -n 15 "$scratch/out" | sed 's/^/        | /'
  fi
}

# eventually SECONDS COMMAND…: repeats it until it succeeds.
eventually() {
  local limit=$1 deadline=$((SECONDS + $1))
  shift
  until "$@" >"$scratch/last" 2>&1; do
    ((SECONDS < deadline)) || { cat "$scratch/last"; echo "still not so after $limit s: $*"; return 1; }
    sleep 0.3
  done
}

# stops_saying WORDS COMMAND…: it fails, says so in its words, and starts nothing.
stops_saying() {
  local words=$1 before
  shift
  before=$(docker ps -aq)
  ! "$@" >"$scratch/said" 2>&1 || { echo "it did not stop"; return 1; }
  cat "$scratch/said"
  grep -qF "$words" "$scratch/said" && [ "$(docker ps -aq)" = "$before" ]
}

# put ID KEY VALUE, reads ID KEY VALUE: a write and a read at that node give exactly this.
put() {
  local answer
  answer=$(ask -X PUT "$(url "$1")/store/$2" -d "{\"value\":\"$3\"}")
  echo "PUT $2 at NODE-$1: $answer"
  [ "$answer" = "{\"key\":\"$2\",\"value\":\"$3\"}" ]
}
reads() {
  local answer
  answer=$(ask "$(url "$1")/store/$2")
  echo "GET $2 at NODE-$1: $answer"
  [ "$answer" = "{\"value\":\"$3\"}" ]
}
put_then_reads() { put "$1" "$3" "$4" && reads "$2" "$3" "$4"; }

report() {
  echo
  echo "$passed passed, $failed failed, $skipped skipped"
  [ "$failed" = 0 ]
}
