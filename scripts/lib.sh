# Shared by the scripts: installs what is missing. Sourced, not run.

# Root runs apt-get itself; everybody else through sudo.
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# install_missing PACKAGE... : installs the Debian packages that are not there yet.
install_missing() {
    local missing=()
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return 0
    command -v apt-get >/dev/null || { echo "please install: ${missing[*]}" >&2; exit 69; }
    echo "installing ${missing[*]}" >&2
    as_root apt-get update -qq
    # Nothing here may ask a question, and no server is wanted on the system's own port.
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

require_swift() {
    command -v swift >/dev/null && return 0
    echo "Swift 6.2 or newer is needed and was not found; see https://www.swift.org/install/linux/" >&2
    exit 69
}

build_packages=(libpq-dev libcurl4-openssl-dev libssl-dev libxml2 pkg-config postgresql)
test_packages=(python3 python3-venv curl iproute2 pgbouncer openssl)

# verifier: a Python outside the system's; its path is in $venv, and in OUTBOX_TEST_PYTHON for the tests. The reference
# implementation of Standard Webhooks checks ours; the servers of Tests/Servers are made of the others.
verifier() {
    venv=$PWD/.build/verifier
    mkdir -p .build
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check standardwebhooks cryptography h2
    export OUTBOX_TEST_PYTHON="$venv/bin/python"
}
