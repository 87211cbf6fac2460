#!/bin/sh
# Installs this kit on a machine without a network. README.txt beside it says how.
set -eu
umask 022
LC_ALL=C
export LC_ALL

USAGE="usage: sh install.sh check     [--trust PUB.pem]
       sh install.sh install   [--prefix DIR] [--trust PUB.pem] [--python PATH] [--no-systemd] [--user NAME] [--cpu]
       sh install.sh upgrade   [--prefix DIR] [--trust PUB.pem] [--python PATH] [--cpu]
       sh install.sh rollback  [--prefix DIR]
       sh install.sh uninstall [--prefix DIR]"

PROGRAM=radvlm-edge
SERVE=$PROGRAM-serve.service
NODE=$PROGRAM-node@.service

say() { printf '%s kit: %s\n' "$PROGRAM" "$*" >&2; }
die() { say "$*"; exit 1; }

kit=$(cd "$(dirname "$0")" && pwd)
prefix=/opt/radvlm-edge
unit_dir=/etc/systemd/system
python='' trust='' user=radvlm systemd=yes cuda=yes user_given=no
new='' work='' lock='' finished=no

# ---- what is asked for ---------------------------------------------------------------------------

parse() {
    [ $# -gt 0 ] || { printf '%s\n' "$USAGE" >&2; exit 2; }
    action=$1
    shift
    case $action in
        check | install | upgrade | rollback | uninstall) ;;
        -h | --help) printf '%s\n' "$USAGE"; exit 0 ;;
        *) printf '%s\n' "$USAGE" >&2; exit 2 ;;
    esac
    while [ $# -gt 0 ]; do
        case $1 in
            --no-systemd) systemd=no; shift; continue ;;
            --cpu) cuda=no; shift; continue ;;
            --prefix | --trust | --python | --user | --unit-dir) ;;
            *) die "$1: no such option" ;;
        esac
        [ $# -gt 1 ] || die "$1 needs a value"
        case $1 in
            --prefix) prefix=$2 ;;
            --trust) trust=$2 ;;
            --python) python=$2 ;;
            --user) user=$2 user_given=yes ;;
            --unit-dir) unit_dir=$2 ;;
        esac
        shift 2
    done
    case $prefix in
        / | *[!A-Za-z0-9._/-]* | *..*) die "--prefix $prefix: an absolute path of letters, digits and . _ - is needed" ;;
        /*) ;;
        *) die "--prefix $prefix: an absolute path is needed" ;;
    esac
    case $user in
        '' | [!a-z_]* | *[!a-z0-9_-]*) die "--user $user: small letters, digits, _ and - alone make up a user's name" ;;
    esac
    if [ -n "$trust" ]; then
        [ -f "$trust" ] || die "--trust $trust: no such file"
        trust=$(cd "$(dirname "$trust")" && pwd)/$(basename "$trust")
    fi
}

# ---- is this the kit that was packed -------------------------------------------------------------

fact() { # NAME: one value of kit.json, which has one a line
    sed -n "s/^ \"$1\": \"\{0,1\}\([^\"]*[^\",]\)\"\{0,1\},\{0,1\}\$/\1/p" "$kit/kit.json"
}

check_signature() {
    if [ -z "$trust" ]; then
        if [ -f "$kit/SHA256SUMS.sig" ]; then say "signed; pass --trust PUB.pem to check by whom"; fi
        return 0
    fi
    [ -f "$kit/SHA256SUMS.sig" ] || die "the kit is not signed, and --trust demands it; nothing was touched"
    openssl pkeyutl -help 2>&1 | grep -q rawin || die "--trust needs openssl 3, not found here; nothing was touched"
    openssl pkeyutl -verify -pubin -inkey "$trust" -rawin -in "$kit/SHA256SUMS" \
        -sigfile "$kit/SHA256SUMS.sig" >/dev/null 2>&1 ||
        die "the signature is not of the key in $trust, or kit or signature were changed; nothing was touched"
}

check_kit() {
    [ -f "$kit/SHA256SUMS" ] || die "$kit: no SHA256SUMS; unpack the kit again"
    check_signature
    odd=$(cd "$kit" && find . ! -type f ! -type d | head -n 1)
    [ -z "$odd" ] || die "$odd: neither a file nor a folder; unpack the kit again; nothing was touched"
    (cd "$kit" && find . -type f ! -path ./SHA256SUMS ! -path ./SHA256SUMS.sig) | sed 's|^\./||' | sort >"$work/present"
    sed 's/^[0-9a-f]\{64\}  //' "$kit/SHA256SUMS" | sort >"$work/listed"
    if ! diff "$work/listed" "$work/present" >"$work/difference"; then
        sed -n 's/^< /missing: /p; s/^> /not listed: /p' "$work/difference" >&2
        die "not the kit that was packed; copy it again; nothing was touched"
    fi
    (cd "$kit" && sha256sum --check --strict --quiet SHA256SUMS) >&2 ||
        die "not the kit that was packed; copy it again; nothing was touched"
    [ "$(fact schema)" = 1 ] || die "kit.json: schema $(fact schema), this script knows 1; nothing was touched"
    say "every file as packed: $(fact folder)"
    if [ "$(fact redistributable)" = false ]; then
        say "NOT TO BE PASSED ON: the licence of $(fact bundle) binds whoever installs it (DO-NOT-PASS-ON.txt)"
    fi
}

# ---- can it run here -----------------------------------------------------------------------------

check_machine() {
    [ "$(uname -m)" = "$(fact arch)" ] || die "packed for $(fact arch), this machine is $(uname -m); nothing was touched"
    libc=$(getconf GNU_LIBC_VERSION 2>/dev/null || echo none)
    case $libc in
        "glibc 2."*) ;;
        *) die "glibc is needed, this machine has: $libc; nothing was touched" ;;
    esac
    minor=${libc#glibc 2.}
    [ "${minor%%.*}" -ge "$(fact glibc)" ] || die "glibc 2.$(fact glibc) is needed, this machine has $libc; nothing was touched"
    choose_python
    check_compiler
    check_space
    if [ "$systemd" = yes ]; then
        [ "$(id -u)" = 0 ] || die "services need root; run as root, or pass --no-systemd; nothing was touched"
        command -v systemctl >/dev/null || die "no systemctl here; pass --no-systemd; nothing was touched"
        case $prefix in
            /home/* | /root/* | /run/*) die "$prefix: services do not see it; choose another --prefix; nothing was touched" ;;
        esac
    fi
}

choose_python() {
    candidates=$python
    if [ -z "$candidates" ]; then
        for version in $(fact pythons); do candidates="$candidates python$version"; done
        candidates="$candidates python3"
    fi
    for candidate in $candidates; do
        path=$(command -v "$candidate") || continue
        version=$("$path" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        if [ -f "$kit/requirements/$version.txt" ]; then
            python=$path
            return 0
        fi
    done
    die "no Python the kit is packed for ($(fact pythons)) among: $candidates; pass --python; nothing was touched"
}

check_compiler() {
    [ -n "$(fact compiled)" ] || return 0
    command -v g++ >/dev/null || die "$(fact compiled) is compiled here and needs g++; nothing was touched"
    if [ "$(fact jetson)" = true ] && [ -z "${CMAKE_ARGS:-}" ] && [ "$cuda" = yes ]; then
        PATH=$PATH:/usr/local/cuda/bin
        export PATH
        command -v nvcc >/dev/null || die "no nvcc; install JetPack's CUDA toolkit, or pass --cpu; nothing was touched"
        CMAKE_ARGS="-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=$(jetson_architecture) -DGGML_CUDA_NCCL=OFF"
        export CMAKE_ARGS
    fi
}

jetson_architecture() {
    model=$(tr -d '\0' </proc/device-tree/compatible 2>/dev/null || true)
    case $model in
        *tegra234*) echo 87 ;;
        *tegra264*) echo 110 ;;
        *) die "neither Orin nor Thor by its device tree; set CMAKE_ARGS, or pass --cpu; nothing was touched" ;;
    esac
}

check_space() {
    above=$prefix
    while [ ! -d "$above" ]; do above=$(dirname "$above"); done
    free=$(df -Pk "$above" | awk 'NR == 2 { print int($4 / 1024) }')
    [ "$free" -ge "$(fact disk_mib)" ] || die "$above: $free MiB free, $(fact disk_mib) are needed; nothing was touched"
}

# ---- one version, built beside the others --------------------------------------------------------

build_version() {
    id=$(fact version)-$(sha256sum "$kit/SHA256SUMS" | cut -c1-12)
    if [ -f "$prefix/versions/$id/complete" ]; then
        say "$id is built already"
        new=''
        return 0
    fi
    rm -rf "$prefix/versions/$id" # of a run that was killed
    new=$prefix/versions/$id
    mkdir -p "$new"
    site=''
    if [ "$(fact jetson)" = true ]; then site=--system-site-packages; fi # TensorRT is the system's
    "$python" -m venv --without-pip $site "$new/venv"
    say "installing packages for Python $version"
    pip install --no-index --find-links "$kit/wheels" --require-hashes --no-deps --ignore-installed \
        --no-cache-dir --quiet --root-user-action=ignore -r "$kit/requirements/$version.txt"
    if [ "$(fact jetson)" = false ]; then pip check >&2; fi
    say "copying the bundle"
    cp -R "$kit/bundle" "$new/bundle"
    for name in kit.json install.sh README.txt MODEL_CARD.md sbom.cdx.json SHA256SUMS; do cp "$kit/$name" "$new/"; done
    cp -R "$kit/licences" "$new/licences"
    write_units
    say "verifying the bundle, and what this machine computes with it"
    XDG_CACHE_HOME=$work "$new/venv/bin/radvlm-edge" verify "$new/bundle" --self-test >&2
    restrict
    : >"$new/complete"
    new=''
}

pip() { # the kit's own, run from its wheel: the machine's Python need not have one
    for wheel in "$kit"/wheels/pip-[0-9]*.whl; do break; done
    env -u PYTHONPATH -u PYTHONHOME "$new/venv/bin/python" "$wheel/pip" --isolated --no-input \
        --disable-pip-version-check "$@"
}

write_units() {
    mkdir "$new/units"
    devices='PrivateDevices=yes'
    if [ "$(fact jetson)" = true ]; then devices='SupplementaryGroups=video render'; fi
    for unit in "$SERVE" "$NODE"; do
        sed "s|@PREFIX@|$prefix|g; s|@USER@|$user|g; s|@MEMORY@|$(fact memory_mib)M|g; s|@DEVICES@|$devices|g" \
            "$kit/units/$unit" >"$new/units/$unit"
    done
}

restrict() { # weights under a licence are for root and the service alone
    [ "$(fact redistributable)" = false ] || return 0
    chmod -R go-rwx "$new/bundle"
    if [ "$systemd" = yes ]; then
        chgrp -R "$(id -gn "$user")" "$new/bundle"
        chmod -R g+rX "$new/bundle"
    fi
}

# ---- switching -----------------------------------------------------------------------------------

point() { # NAME VERSION: a link in the prefix, replaced in one step
    ln -s "versions/$2" "$prefix/.$1.new"
    mv -T "$prefix/.$1.new" "$prefix/$1"
}

version_at() { basename "$(readlink "$prefix/$1" 2>/dev/null || true)"; }

switch_to() { # VERSION: current, with its units; the services are restarted and have to stay up
    point current "$1" || return 1
    [ "$systemd" = yes ] || return 0
    cp "$prefix/current/units/"* "$unit_dir/" || return 1
    systemctl daemon-reload || return 1
    systemctl enable "$SERVE" || return 1
    systemctl restart "$SERVE" || return 1
    systemctl try-restart "$PROGRAM-node@*.service" || return 1
    settled "$SERVE"
}

settled() { # UNIT: active, and not because it was started again and again
    count=0
    while [ "$count" -lt "${RADVLM_KIT_SETTLE_S:-15}" ]; do
        sleep 1
        count=$((count + 1))
        systemctl is-active --quiet "$1" || return 1
    done
    restarts=$(systemctl show --property=NRestarts --value "$1")
    [ "${restarts:-0}" = 0 ]
}

change_to() { # VERSION: switch, and back again if that fails
    before=$(version_at current)
    if switch_to "$1"; then
        if [ -n "$before" ] && [ "$before" != "$1" ]; then point previous "$before"; fi
        return 0
    fi
    if [ -n "$before" ] && [ "$before" != "$1" ]; then
        say "$1 does not stay up; going back to $before"
        switch_to "$before" || die "$before does not stay up either; see journalctl -u $SERVE"
        die "upgrade failed: $before goes on; see journalctl -u $SERVE"
    fi
    die "$1 is installed and its service does not stay up; see journalctl -u $SERVE"
}

forget_old() { # all but the current version and the one before
    for folder in "$prefix"/versions/*/; do
        name=$(basename "$folder")
        case $name in
            "$(version_at current)" | "$(version_at previous)") ;;
            *) rm -rf "$folder" ;;
        esac
    done
}

# ---- what was installed, and how -----------------------------------------------------------------

record() {
    printf 'systemd=%s\nuser=%s\nunit_dir=%s\n' "$systemd" "$user" "$unit_dir" >"$prefix/.installed.new"
    mv -T "$prefix/.installed.new" "$prefix/installed"
    if [ -n "$trust" ] && [ "$trust" != "$prefix/trust.pem" ]; then cp "$trust" "$prefix/trust.pem"; fi
}

recall() {
    [ -f "$prefix/installed" ] || die "$prefix: nothing is installed there; pass --prefix, or use install"
    systemd=$(sed -n 's/^systemd=//p' "$prefix/installed")
    [ "$user_given" = no ] || die "--user is settled when installing; uninstall first"
    user=$(sed -n 's/^user=//p' "$prefix/installed")
    unit_dir=$(sed -n 's/^unit_dir=//p' "$prefix/installed")
    if [ -z "$trust" ] && [ -f "$prefix/trust.pem" ]; then trust=$prefix/trust.pem; fi
}

take_lock() {
    mkdir -p "$prefix"
    mkdir "$prefix/.lock" 2>/dev/null || die "$prefix/.lock: another install is under way; if none is, remove it"
    lock=$prefix/.lock
}

make_user() {
    [ "$systemd" = yes ] || return 0
    id -u "$user" >/dev/null 2>&1 ||
        useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$user"
}

clean() {
    code=$?
    trap - EXIT
    if [ -n "$new" ]; then
        rm -rf "$new"
        current=$(version_at current)
        if [ -n "$current" ]; then say "not installed; $current goes on as before"; else say "not installed"; fi
    fi
    if [ -n "$lock" ]; then rmdir "$lock"; fi
    if [ -n "$work" ]; then rm -rf "$work"; fi
    if [ "$finished" = no ] && [ -d "$prefix" ]; then rmdir "$prefix/versions" "$prefix" 2>/dev/null || true; fi
    exit "$code"
}

# ---- the actions ---------------------------------------------------------------------------------

install_first() {
    [ ! -e "$prefix/installed" ] || die "$prefix: $(version_at current) is installed; use upgrade"
    check_kit
    check_machine
    take_lock
    make_user
    build_version
    mkdir -p "$prefix/bin"
    ln -sf "../current/venv/bin/radvlm-edge" "$prefix/bin/radvlm-edge"
    record
    change_to "$id"
    done_with
}

upgrade() {
    recall
    check_kit
    check_machine
    take_lock
    build_version
    if [ "$(version_at current)" = "$id" ]; then
        say "$id is current already"
        return 0
    fi
    change_to "$id"
    record
    forget_old
    done_with
}

rollback() {
    recall
    back=$(version_at previous)
    if [ -z "$back" ] || [ ! -f "$prefix/versions/$back/complete" ]; then
        die "$prefix: no version before the current one is kept"
    fi
    take_lock
    change_to "$back"
    say "current: $back"
}

uninstall() {
    recall
    take_lock
    if [ "$systemd" = yes ]; then
        systemctl disable --now "$SERVE" || true
        systemctl stop "$PROGRAM-node@*.service" || true
        rm -f "$unit_dir/$SERVE" "$unit_dir/$NODE"
        systemctl daemon-reload
    fi
    rm -f "$prefix/bin/radvlm-edge" "$prefix/current" "$prefix/previous" "$prefix/installed" "$prefix/trust.pem"
    rm -rf "$prefix/versions"
    rmdir "$lock"
    lock=''
    rmdir "$prefix/bin" 2>/dev/null || true
    rmdir "$prefix" 2>/dev/null || say "left alone, not ours: $(find "$prefix" -mindepth 1 -maxdepth 1 | tr '\n' ' ')"
    for left in /etc/$PROGRAM /var/lib/$PROGRAM /var/cache/$PROGRAM; do
        if [ -e "$left" ]; then say "left alone, settings or patient data: $left"; fi
    done
    if [ "$systemd" = yes ]; then say "left alone: the user $user (userdel $user)"; fi
    say "uninstalled"
}

done_with() {
    say "current: $(version_at current); run $prefix/bin/radvlm-edge"
    if [ "$systemd" = yes ]; then say "the viewer: http://127.0.0.1:8080; systemctl status $SERVE"; fi
    say "research use only: no answer is a diagnosis"
}

parse "$@"
work=$(mktemp -d)
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
case $action in
    check) check_kit ;;
    install) install_first ;;
    upgrade) upgrade ;;
    rollback) rollback ;;
    uninstall) uninstall ;;
esac
finished=yes
