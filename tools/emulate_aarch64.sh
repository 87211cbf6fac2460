#!/usr/bin/env bash
# The base install on an emulated aarch64 CPU: does it answer as it does here?
#
#   tools/emulate_aarch64.sh FOLDER [x86-64 python with the base install, default .venv/bin/python]
#
# Makes an arm64 Debian 12 below FOLDER, puts the wheels pip would take there into it, cross-compiles llama.cpp
# for the cores of a Jetson Orin (Cortex-A78AE; qemu's nearest is the A76), and asks both machines the same about
# examples/chest.dcm. Every part is kept and not made again. No binfmt, chroot or container: qemu is called by name, so nothing in there is executed
# by the kernel. Debian 12 as root, with: apt-get install qemu-user-static debootstrap g++-aarch64-linux-gnu
# cmake ninja-build unzip. MIRROR names a Debian mirror where debootstrap's own is not reached.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
folder=$(realpath -m "${1:?name a folder of about 1 GB}")
python=$(realpath -s "${2:-$here/.venv/bin/python}")
llama=0.3.36
root=$folder/root wheels=$folder/wheels site=$folder/site build=$folder/llama.cpp
mkdir -p "$folder"
say() { echo "emulate_aarch64: $*" >&2; }

if [ ! -x "$root/usr/bin/python3.11" ]; then
    say "arm64 Debian 12 with Python 3.11"
    rm -rf "$root"
    debootstrap --arch=arm64 --foreign --variant=minbase --include=python3,libgomp1,libstdc++6 \
        bookworm "$root" ${MIRROR:+"$MIRROR"} > "$folder/debootstrap.log"
    # The second stage runs maintainer scripts; unpacked files are all that is needed here.
    for package in "$root"/var/cache/apt/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
    # What an Orin's cores say. With this machine's own /proc/cpuinfo ONNX Runtime ends in a segmentation fault.
    for core in 0 1; do
        printf '%s\t: %s\n' processor "$core" BogoMIPS 62.50 \
            Features "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp" \
            "CPU implementer" 0x41 "CPU architecture" 8 "CPU variant" 0x0 "CPU part" 0xd42 "CPU revision" 1
        echo
    done > "$root/proc/cpuinfo"
fi

if [ ! -d "$site" ]; then
    say "wheels"
    mkdir -p "$wheels" "$site.new"
    "$python" "$here/tools/aarch64_wheels.py" --python 3.11 --glibc 36 --download "$wheels" > "$folder/wheels.txt"
    "$python" -m pip wheel --quiet --no-deps --wheel-dir "$wheels" "$here"
    for wheel in "$wheels"/*.whl; do unzip -qo "$wheel" -d "$site.new"; done
    mv "$site.new" "$site"
fi

if [ ! -e "$site/llama_cpp/lib/libllama.so" ]; then
    say "llama.cpp for aarch64, cross-compiled"
    # Not `pip wheel`: pip would keep the result among its own wheels as one for this machine.
    if [ ! -d "$build/source" ]; then
        mkdir -p "$build/source"
        "$python" -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest "$build" "llama-cpp-python==$llama"
        tar xzf "$build"/llama_cpp_python-*.tar.gz --strip-components 1 -C "$build/source"
    fi
    cmake -G Ninja -S "$build/source/vendor/llama.cpp" -B "$build/build" \
        -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
        -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
        -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DCMAKE_BUILD_RPATH_USE_ORIGIN=ON \
        -DGGML_NATIVE=OFF -DGGML_CPU_ARM_ARCH="${ARM_ARCH:-armv8.2-a+dotprod+fp16}" \
        -DLLAMA_CURL=OFF -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF \
        -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF > "$folder/cmake.log"
    cmake --build "$build/build" --target llama > "$folder/ninja.log"
    cp -r "$build/source/llama_cpp" "$site/"
    mkdir -p "$site/llama_cpp/lib"
    cp -P "$build"/build/bin/lib*.so* "$site/llama_cpp/lib/"
fi

ask=(infer "$here/examples/chest.dcm" --ask "any effusion?" --task report --task locate="right lung" --json --threads 1)
main="import sys; from radvlm_edge.cli import main; sys.argv[0] = 'radvlm-edge'; main()"
for language in F16 Q8_0; do
    for vision in fp16 int8; do
        way="$vision+$language"
        say "$way here"
        "$python" -c "$main" "${ask[@]}" --vision "$vision" --language "$language" > "$folder/here-$way.json"
        say "$way on aarch64"
        PYTHONPATH=$site PYTHONDONTWRITEBYTECODE=1 \
            qemu-aarch64-static -cpu cortex-a76 -L "$root" "$root/usr/bin/python3.11" -S -c "$main" \
            "${ask[@]}" --vision "$vision" --language "$language" > "$folder/aarch64-$way.json"
        "$python" "$here/tools/same_answers.py" "$folder/here-$way.json" "$folder/aarch64-$way.json" "$way"
    done
done
