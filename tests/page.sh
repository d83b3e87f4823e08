#!/usr/bin/env bash
# The tests that need a browser, and those that need schemathesis: `make test-page`. Installs both where it
# may, with Debian's packages and a venv under target/; else it says what to install.
set -euo pipefail
cd "$(dirname "$0")/.."

# The newest that is known to find nothing wrong; another one may check other things.
schemathesis=schemathesis==4.32.5
venv=target/page-venv

fail() { echo "make test-page: $1" >&2; exit 1; }

packages=()
command -v chromium >/dev/null || packages+=(chromium)
command -v chromedriver >/dev/null || packages+=(chromium-driver)
[ -x $venv/bin/pip ] || python3 -c 'import ensurepip' 2>/dev/null || packages+=(python3-venv)
if ((${#packages[@]})); then
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || fail "install first: ${packages[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${packages[@]}" >/dev/null
fi
if [ "$($venv/bin/pip freeze 2>/dev/null | grep '^schemathesis==')" != $schemathesis ]; then
  python3 -m venv $venv
  $venv/bin/pip install --quiet --disable-pip-version-check $schemathesis || fail "could not install $schemathesis into $venv"
fi

# One after the other: several browsers would starve each other on a small machine.
cargo test --locked --test it page:: -- --ignored --test-threads=1
