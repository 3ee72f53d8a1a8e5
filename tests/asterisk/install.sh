#!/usr/bin/env bash
# Puts a real Asterisk and a SIP telephone into a folder: bash tests/asterisk/install.sh FOLDER
# FOLDER may also come from REAL_ASTERISK, which then tells the tests where to look. About a minute, 450 MB.
#
# The folder is a small Debian unstable, for Debian's stable releases have no Asterisk. Nothing in it is started or
# chrooted into afterwards: tests/asterisk/programs.py runs its programs in place, as an ordinary user.
# Needs Debian or Ubuntu, and root or sudo without a password. A second run has nothing to do.
set -euo pipefail

readonly PACKAGES=(asterisk asterisk-modules baresip-core)
readonly MIRROR=${DEBIAN_MIRROR:-http://deb.debian.org/debian}

fail() {
  printf 'Asterisk was not installed: %s\n' "$1" >&2
  exit 1
}

as_root() {
  if ((EUID == 0)); then "$@"; else sudo -n "$@"; fi
}

# Prints the end of the log where COMMAND fails.
logged() { # logged WHAT COMMAND...
  local what=$1
  shift
  "$@" >"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    fail "$what failed"
  }
}

is_installed() {
  [[ -x $folder/usr/sbin/asterisk && -x $folder/usr/bin/baresip ]] &&
    compgen -G "$folder/usr/lib/*/asterisk/modules/chan_websocket.so" >/dev/null
}

folder=${1:-${REAL_ASTERISK:-}}
[[ -n $folder ]] || fail "which folder? bash tests/asterisk/install.sh FOLDER"
folder=$(realpath -m "$folder")
if is_installed; then
  printf 'Asterisk is installed in %s\n' "$folder"
  exit 0
fi
[[ $(uname -s) == Linux ]] && command -v apt-get >/dev/null || fail "this needs Debian or Ubuntu"
((EUID == 0)) || sudo -n true 2>/dev/null || fail "this needs root, or sudo without a password"

# Built beside its place and moved at the end, so that a folder is whole or is not there.
part=$folder.part
log=$(mktemp)
trap 'rm -f "$log"; as_root rm -rf --one-file-system "$part"' EXIT
# The key that signs Debian's archive is in debian-archive-keyring, which Ubuntu leaves out of debootstrap.
readonly KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
if ! command -v /usr/sbin/debootstrap >/dev/null || [[ ! -e $KEYRING ]]; then
  as_root apt-get -qq update || true
  logged "the installation of debootstrap" as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq install -y --no-install-recommends debootstrap debian-archive-keyring
fi

mkdir -p "$(dirname "$folder")"
as_root rm -rf --one-file-system "$part"
logged "debootstrap" as_root /usr/sbin/debootstrap --variant=minbase --keyring="$KEYRING" sid "$part" "$MIRROR"
printf '#!/bin/sh\nexit 101\n' | as_root tee "$part/usr/sbin/policy-rc.d" >/dev/null
as_root chmod +x "$part/usr/sbin/policy-rc.d"
# A mirror that lags behind has a list past its date; it is signed all the same.
logged "the installation of Asterisk" as_root chroot "$part" env DEBIAN_FRONTEND=noninteractive LC_ALL=C \
  sh -c 'apt-get -qq -o Acquire::Check-Valid-Until=false update &&
    apt-get -qq install -y --no-install-recommends "$@" && apt-get clean' sh "${PACKAGES[@]}"
as_root rm -rf --one-file-system "$folder"
as_root mv "$part" "$folder"
is_installed || fail "the packages lack chan_websocket or baresip"
printf 'Asterisk is installed in %s\n' "$folder"
