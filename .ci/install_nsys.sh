#!/usr/bin/env bash
# Nsight Systems 2022.4.2 on Debian bookworm without an NVIDIA driver, from Debian's own non-free
# component, so that tests record with the real nsys. Needs root. The machine's apt sources stay as
# they are: the two components it needs are added for this script's apt calls alone.
#
# Debian splits the package over two folders; without a link to the importer beside the collector,
# `nsys profile` would leave a .qdstrm and no report.
set -euo pipefail

collector=/usr/lib/x86_64-linux-gnu/nsight-systems
importer=/usr/lib/nsight-systems/host-linux-x64
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

die() { printf 'install_nsys: %s\n' "$*" >&2; exit 1; }

if ! dpkg-query -W -f='${db:Status-Status}' nsight-systems 2>/dev/null | grep -qx installed; then
    [ "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" = bookworm ] || die "written for Debian bookworm"
    archive=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
        awk '$1 == "bookworm" && $2 ~ /\/debian\/?$/ { print $2; exit }')
    [ -n "$archive" ] || die "no bookworm archive among this machine's apt sources"
    mkdir -p "$work/sources" "$work/lists/partial"
    find /etc/apt/sources.list.d -maxdepth 1 -type f -exec cp -t "$work/sources" {} +
    printf 'deb [signed-by=%s] %s bookworm contrib non-free\n' \
        /usr/share/keyrings/debian-archive-keyring.gpg "$archive" > "$work/sources/nsys.list"
    chmod -R a+rX "$work"
    options=(-q -o "Dir::Etc::SourceParts=$work/sources" -o "Dir::State::Lists=$work/lists"
        -o Acquire::Languages=none -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300)
    apt-get "${options[@]}" update > "$work/log" 2>&1 &&
        DEBIAN_FRONTEND=noninteractive apt-get "${options[@]}" install -y \
            --no-install-recommends nsight-systems >> "$work/log" 2>&1 ||
        { tail -n 30 "$work/log" >&2; die "apt-get failed"; }
fi
[ -x "$importer/QdstrmImporter" ] || die "no importer in $importer"
ln -sfn "$importer" "$collector/host-linux-x64"
nsys --version
