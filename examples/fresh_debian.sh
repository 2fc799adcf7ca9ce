#!/usr/bin/env bash
# Tries the install, the wheel and both examples in a fresh Debian, where nothing but what they need
# is installed:
#
#   examples/fresh_debian.sh BUILD [SUITE]    a build folder with the target installable; bookworm
#
# Needs root, mmdebstrap and Debian's archive. No part of the build or of the tests.
set -euo pipefail
if (($# < 1 || $# > 2)); then
  echo 'usage: examples/fresh_debian.sh BUILD [SUITE]' >&2
  exit 2
fi
source=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
build=$(readlink -f "$1") suite=${2:-bookworm}
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
chroot "$system" /usr/bin/env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  bash /root/weft/try
