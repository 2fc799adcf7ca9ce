#!/usr/bin/env bash
# Tries the install, the wheel and both examples in a fresh Debian, where nothing but what they need
# is installed:
#
#   examples/fresh_debian.sh BUILD [SUITE [TORCH]]    a build folder with the target installable
#
# SUITE is bookworm unless given. The script runs on numpy alone, then once more with torch: TORCH
# is debian (the package python3-torch, the default), pypi (gigabytes) or none. Needs root,
# mmdebstrap and Debian's archive. No part of the build or of the tests.
set -euo pipefail
if (($# < 1 || $# > 3)); then
  echo 'usage: examples/fresh_debian.sh BUILD [SUITE [debian|pypi|none]]' >&2
  exit 2
fi
source=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
build=$(readlink -f "$1") suite=${2:-bookworm} torch=${3:-debian}
case $torch in
  debian) install='apt-get update -q && apt-get install -yq --no-install-recommends python3-torch' ;;
  pypi) install='pip install -q --break-system-packages torch' ;;
  none) install= ;;
  *) echo "fresh_debian.sh: torch comes from debian, pypi or none, not from $torch" >&2; exit 2 ;;
esac
system=$(mktemp -d)
trap 'rm -rf --one-file-system "$system"' EXIT

mmdebstrap --variant=minbase \
  --include=g++,cmake,make,python3,python3-numpy,python3-pip,libsentencepiece0 \
  "$suite" "$system" http://deb.debian.org/debian
DESTDIR=$system cmake --install "$build" --prefix /usr
mkdir "$system/root/weft"
cp -r "$source/examples" "$system/root/weft/"
WEFT_LIBRARY=$build/libweft.so "$source/library/python/build_weft.py" "$system/root/weft"

cat >"$system/root/weft/try" <<'end'
set -ex
ldconfig
cmake -S /root/weft/examples -B /tmp/example
cmake --build /tmp/example
/tmp/example/train
pip install --break-system-packages --no-index /root/weft/*.whl
python3 /root/weft/examples/train.py
weft version
end
inside() {
  chroot "$system" /usr/bin/env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    DEBIAN_FRONTEND=noninteractive bash "$@"
}
inside /root/weft/try
[[ $install ]] || exit 0
# What this machine asks the network with, names and certificates, holds inside as well.
cp -L /etc/resolv.conf /etc/hosts "$system/etc/"
mkdir -p "$system/etc/ssl/certs"
cp -L /etc/ssl/certs/ca-certificates.crt "$system/etc/ssl/certs/"
inside -exc "$install"
inside -exc 'python3 /root/weft/examples/train.py | tee /tmp/told && grep -q "^torch: " /tmp/told'

