#!/usr/bin/env bash
# The tests that need a browser, schemathesis, an HTTP cache, proxies or network namespaces: `make test-page`. Installs them where it
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
# Debian has servers where an ordinary user's path has not.
PATH=$PATH:/usr/sbin
command -v varnishd >/dev/null || packages+=(varnish)
command -v nginx >/dev/null || packages+=(nginx-light)
command -v haproxy >/dev/null || packages+=(haproxy)
command -v ab >/dev/null || packages+=(apache2-utils)
command -v ip >/dev/null || packages+=(iproute2)
command -v curl >/dev/null || packages+=(curl)
command -v openssl >/dev/null || packages+=(openssl)
[ "$(id -u)" = 0 ] || fail "network namespaces take root"
if ((${#packages[@]})); then
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || fail "install first: ${packages[*]}"
  echo "make test-page: installing ${packages[*]}"
  # Debian starts a server as soon as it is installed, unless this says no. Nobody asked for them to serve.
  policy=/usr/sbin/policy-rc.d
  if ! [ -e $policy ]; then
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
  fi
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${packages[@]}"; } >/dev/null ||
    fail "apt-get could not install ${packages[*]}"
fi
if [ "$($venv/bin/pip freeze 2>/dev/null | grep '^schemathesis==')" != $schemathesis ]; then
  python3 -m venv $venv
  $venv/bin/pip install --quiet --disable-pip-version-check $schemathesis || fail "could not install $schemathesis into $venv"
fi

tests/it/zookeeper/server.sh install
# One after the other: several browsers would starve each other on a small machine.
cargo test --locked --test it -- --ignored --test-threads=1 page:: proxies:: runs:: durable::
# All at once: most of their time they wait. They say what docs/operating.md says of what happens when, and of several hosts. One
# after the other, for the clients of the second would make the first late.
cargo test --locked --test it -- --ignored --test-threads=12 --nocapture cuts::
cargo test --locked --test it -- --ignored --test-threads=12 --nocapture hosts::
