#!/bin/sh
# Install Privet from this kit, without a network: sh install.sh [DIR]   (default /opt/privet)
# PYTHON names the interpreter (default python3). Nothing but DIR is written.
set -eu
target=${1:-/opt/privet}
python=${PYTHON:-python3}
cd "$(dirname "$0")"

sha256sum --check --strict --quiet SHA256SUMS || {
    echo "install: this kit was changed or is damaged; nothing was installed" >&2
    exit 1
}
"$python" -I - <<'CHECK'
import json, platform, sys, sysconfig

kit = json.load(open("kit.json"))
here = "%d.%d" % sys.version_info[:2]
if here != kit["python"] or sysconfig.get_platform() != kit["platform"]:
    sys.exit(
        "install: this kit is for Python %s on %s; this is Python %s on %s. PYTHON names another one"
        % (kit["python"], kit["platform"], here, sysconfig.get_platform())
    )
name, version = platform.libc_ver()
if name != "glibc" or [int(part) for part in version.split(".")[:2]] < kit["glibc"]:
    sys.exit("install: glibc %d.%d or later is needed" % tuple(kit["glibc"]))
CHECK
if [ -e "$target" ]; then
    echo "install: $target exists; name another folder, or move it away" >&2
    exit 1
fi
# On a failure nothing half-made stays.
trap 'rm -rf "$target"' EXIT
"$python" -I -m venv "$target"
PIP_CONFIG_FILE=/dev/null "$target/bin/python" -I -m pip --isolated --disable-pip-version-check \
    --no-cache-dir install --quiet --no-index --find-links wheels --require-hashes \
    --only-binary :all: -r requirements.txt
"$target/bin/python" -I -m pip --isolated --disable-pip-version-check check
"$target/bin/privet" --help >/dev/null
trap - EXIT
echo "installed: $target/bin/privet"
