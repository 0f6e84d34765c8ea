#!/usr/bin/env bash
# Make one virtual environment per aiconfigurator release that the tests run against: v7, v8, v10
# and v12 in FOLDER (or $DSA_AIC_VENVS). Their numpy pins exclude one shared environment.
# A finished environment carries a stamp and is left alone, so a second run takes no time.
#
#   .ci/aiconfigurator_venvs.sh FOLDER [7 8 10 12]
set -euo pipefail

folder=${1:-${DSA_AIC_VENVS:-}}
if [ -z "$folder" ]; then
    echo "usage: $0 FOLDER [7 8 10 12]      (or set DSA_AIC_VENVS)" >&2
    exit 2
fi
shift || true
python=${PYTHON:-python3}
mkdir -p "$folder"

for minor in "${@:-7 8 10 12}"; do
    for one in $minor; do
        home=$folder/v$one
        want=("aiconfigurator==0.$one.0")
        # 0.10.0 asks for numpy 1.26 and any pyarrow, but pyarrow 22 and later refuse numpy 1.
        [ "$one" = 10 ] && want+=("pyarrow<22")
        [ "$(cat "$home/.ready" 2>/dev/null)" = "${want[*]}" ] && continue
        echo "making $home (${want[*]})" >&2
        rm -rf "$home"
        "$python" -m venv "$home"
        if ! "$home/bin/python" -m pip install --quiet --disable-pip-version-check \
            --only-binary :all: "${want[@]}"; then
            echo "error: ${want[*]} could not be installed into $home" >&2
            exit 1
        fi
        installed=$("$home/bin/python" -c \
            'from importlib.metadata import version; print(version("aiconfigurator"))')
        [ "$installed" = "0.$one.0" ] || { echo "error: got $installed" >&2; exit 1; }
        echo "${want[*]}" >"$home/.ready"
    done
done
