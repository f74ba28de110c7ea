#!/usr/bin/env bash
# Runs an x86-64 Linux program on an emulated processor that has AVX-512.
#
#   xtask/avx512.sh [--with PATH]... PROGRAM [ARGS...]
#
# The AVX-512 kernels cannot run on a machine without AVX-512, so a test of them there passes by
# not testing. This script boots a small Linux inside the Bochs emulator, on a processor model
# with AVX-512 F, BW, VL, DQ and VNNI, runs PROGRAM in it, copies what the program prints to
# standard output as it prints it, and exits with the program's exit status.
#
#   cargo test -p tenure-cpu --release --no-run     # prints the path of the test binary
#   xtask/avx512.sh target/release/deps/tenure_cpu-<hash> simd::
#
# PROGRAM may be linked dynamically (the libraries `ldd` names are taken along) or statically.
# --with PATH takes one more file or folder along, to the same absolute path. The program runs in
# the folder this script was called from (empty but for what was taken along), with HOME=/tmp,
# one processor, and no network. Choose tests that are small: one emulated processor runs some
# hundred times slower than the real one. Build with --release.
#
# Needs: Debian 12 or a relative of it on x86-64, with apt, dpkg, bash and a C compiler that can
# link statically (gcc and libc6-dev). The first run needs the network: it downloads the emulator,
# a kernel, a boot loader and their libraries, about 50 MB of Debian packages. They are unpacked
# into a folder of their own; nothing is installed and root is not needed.
#
# Environment:
#   TMPDIR           the downloads are kept in ${TMPDIR:-/tmp}/tenure-avx512-<uid>
#   AVX512_TIMEOUT   seconds until the emulator is stopped, 3600 unless given
#   AVX512_MEMORY    megabytes of memory in the machine, 1024 unless given
#   AVX512_CPU       the Bochs processor model, corei7_icelake_u unless given
#   AVX512_ENV       variables for the program, as "NAME=value NAME=value"
#   AVX512_KEEP      if not empty, the working folder is kept and its path printed: console.log
#                    has the kernel's messages, bochs.log the emulator's
#
# Exit status: the program's own; 128 + the number of the signal that ended it; 124 if the time
# ran out; 125 if the machine did not get as far as an exit status; 2 on wrong use.
set -euo pipefail

die() {
    echo "avx512: $2" >&2
    exit "$1"
}

extra=()
while [ $# -gt 0 ]; do
    case "$1" in
        --with)
            [ $# -ge 2 ] || die 2 "--with needs a path"
            [ -e "$2" ] || die 2 "$2: no such file or folder"
            extra+=("$(realpath -s "$2")")
            shift 2
            ;;
        -h | --help)
            sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
            exit 0
            ;;
        --)
            shift
            break
            ;;
        -*) die 2 "unknown option $1" ;;
        *) break ;;
    esac
done
[ $# -ge 1 ] || die 2 "usage: avx512.sh [--with PATH]... PROGRAM [ARGS...]"
program=$(realpath "$1")
shift
[ -x "$program" ] && [ -f "$program" ] || die 2 "$program: not a program"

store=${TMPDIR:-/tmp}/tenure-avx512-$(id -u)
root=$store/root
libraries=$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu
memory=${AVX512_MEMORY:-1024}
model=${AVX512_CPU:-corei7_icelake_u}

# Downloads the packages and unpacks them under $root, once. `apt-get install --download-only`
# works out which libraries of the emulator this machine lacks.
fetch() {
    mkdir -p "$store/archives/partial" "$store/lists/partial"
    [ -e "$store/complete" ] && return
    echo "avx512: downloading the emulator and a kernel into $store" >&2
    local apt=(apt-get -q -o Debug::NoLocking=1 -o "Dir::Cache::archives=$store/archives"
        -o "Dir::Cache::pkgcache=" -o "Dir::Cache::srcpkgcache=" -o APT::Sandbox::User=)
    # The machine's own package lists may be missing or out of date, so a list is fetched here.
    apt+=(-o "Dir::State::lists=$store/lists")
    "${apt[@]}" update >"$store/apt.log" 2>&1 || die 125 "apt-get update failed: see $store/apt.log"
    local kernel
    kernel=$(apt-cache -o "Dir::State::lists=$store/lists" -o "Dir::Cache::pkgcache=" \
        -o "Dir::Cache::srcpkgcache=" depends linux-image-cloud-amd64 |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
    [ -n "$kernel" ] || die 125 "no package linux-image-cloud-amd64: this script needs Debian's"
    "${apt[@]}" -y --no-install-recommends --download-only --reinstall install \
        bochs bochs-term bochsbios vgabios isolinux syslinux-common genisoimage cpio "$kernel" \
        >>"$store/apt.log" 2>&1 || die 125 "apt-get install failed: see $store/apt.log"
    local package
    for package in "$store"/archives/*.deb; do
        dpkg -x "$package" "$root"
    done
    touch "$store/complete"
    rm -rf "$store/archives" "$store/lists"
}

# The first process of the machine: mounts what programs expect, runs the program with its output
# on the second serial port, writes its status on the first, and switches the machine off.
write_init() {
    cat >"$1" <<'C'
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

enum { MOST = 1024 };

/* Reads a file of strings that each end in a zero byte. */
static char **strings(const char *path) {
    static char text[2][1 << 17];
    static char *list[2][MOST];
    static int next = 0;
    char *at = text[next], **out = list[next++];
    int file = open(path, O_RDONLY), count = 0;
    ssize_t length = file < 0 ? 0 : read(file, at, sizeof text[0] - 1);
    for (char *end = at + (length > 0 ? length : 0); at < end && count < MOST - 1; at += strlen(at) + 1)
        out[count++] = at;
    out[count] = NULL;
    return out;
}

static void run(void) {
    char **arguments = strings("/avx512/arguments"), **environment = strings("/avx512/environment");
    char folder[4096] = "/";
    int file = open("/avx512/folder", O_RDONLY);
    if (file >= 0) folder[read(file, folder, sizeof folder - 1)] = 0;
    if (chdir(folder) != 0) perror(folder);
    execve("/avx512/program", arguments, environment);
    perror("execve");
    _exit(127);
}

int main(void) {
    mkdir("/proc", 0755), mount("proc", "/proc", "proc", 0, "");
    mkdir("/sys", 0755), mount("sysfs", "/sys", "sysfs", 0, "");
    mkdir("/dev", 0755), mount("devtmpfs", "/dev", "devtmpfs", 0, "");
    mkdir("/dev/shm", 01777), mkdir("/tmp", 01777);
    int console = open("/dev/ttyS0", O_WRONLY | O_NOCTTY), output = open("/dev/ttyS1", O_RDWR | O_NOCTTY);
    struct termios raw;
    if (console < 0 || output < 0 || tcgetattr(output, &raw) != 0) return 1;
    cfmakeraw(&raw);
    cfsetspeed(&raw, B115200);
    tcsetattr(output, TCSANOW, &raw);
    pid_t child = fork();
    if (child == 0) {
        int nothing = open("/dev/null", O_RDONLY);
        dup2(nothing, 0), dup2(output, 1), dup2(output, 2);
        setsid();
        run();
    }
    int status = 0;
    while (waitpid(child, &status, 0) != child) {}
    tcdrain(output);
    dprintf(console, "\navx512-exit-status %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    tcdrain(console);
    reboot(RB_POWER_OFF);
    return 0;
}
C
}

# Takes a file or folder along, to the same absolute path.
take() {
    mkdir -p "$work/initramfs$(dirname "$1")"
    cp -rL "$1" "$work/initramfs$1"
}

build_image() {
    local tree=$work/initramfs iso=$work/iso library
    mkdir -p "$tree/avx512" "$tree$PWD" "$iso/isolinux"

    if [ ! -x "$store/init" ]; then
        write_init "$store/init.c"
        cc -O1 -static -o "$store/init.$$" "$store/init.c" || die 125 "the first process did not compile"
        mv "$store/init.$$" "$store/init"
    fi
    cp "$store/init" "$tree/init"
    cp "$program" "$tree/avx512/program"
    # Debug information is of no use in there and slow to load.
    if command -v strip >/dev/null; then strip --strip-debug "$tree/avx512/program" || true; fi
    # A static program makes ldd fail and needs no libraries. A dynamic one names its libraries
    # as "name => /path (address)" and its loader as "/path (address)".
    { ldd "$program" 2>/dev/null || true; } | sed -n 's/.*not found.*/&/;t;s/^[^/]*\(\/[^ ]*\) (0x.*/\1/p' |
        while read -r library; do take "$library"; done
    for library in ${extra[@]+"${extra[@]}"}; do take "$library"; done

    printf '%s\0' "$program" "$@" >"$tree/avx512/arguments"
    # shellcheck disable=SC2086 # AVX512_ENV is a list of words
    printf '%s\0' PATH=/usr/bin:/bin HOME=/tmp TMPDIR=/tmp RUST_BACKTRACE=1 ${AVX512_ENV:-} >"$tree/avx512/environment"
    printf '%s' "$PWD" >"$tree/avx512/folder"
    (cd "$tree" && find . -print0 | "$cpio" --quiet --null -o -H newc) >"$iso/initrd"

    cp "$root"/boot/vmlinuz-* "$iso/linux"
    cp "$root/usr/lib/ISOLINUX/isolinux.bin" "$root/usr/lib/syslinux/modules/bios/ldlinux.c32" "$iso/isolinux/"
    # The emulator is slow, so the boot skips what only a real machine needs.
    cat >"$iso/isolinux/isolinux.cfg" <<END
DEFAULT linux
PROMPT 0
TIMEOUT 1
LABEL linux
  KERNEL /linux
  INITRD /initrd
  APPEND console=ttyS0,115200 quiet loglevel=4 nokaslr clearcpuid=pku,xsaves,xsavec,fsrm idle=poll mitigations=off panic=-1 tsc=reliable random.trust_cpu=on no_timer_check audit=0 apparmor=0 selinux=0
END
    LD_LIBRARY_PATH=$libraries "$root/usr/bin/genisoimage" -quiet -o "$work/boot.iso" -R \
        -b isolinux/isolinux.bin -c isolinux/boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table "$iso"
    rm -rf "$tree" "$iso"
}

# The display is the emulator's VNC one, for it is the one that asks for no terminal; it does not
# wait for a client.
write_configuration() {
    cat >"$work/bochsrc" <<END
config_interface: textconfig
display_library: rfb, options="timeout=0"
cpu: model=$model, count=1, ips=20000000, reset_on_triple_fault=0, ignore_bad_msrs=1
memory: guest=$memory, host=$memory
romimage: file=$root/usr/share/bochs/BIOS-bochs-latest, options=fastboot
vgaromimage: file=$root/usr/share/vgabios/vgabios.bin
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path=$work/boot.iso, status=inserted
boot: cdrom
clock: sync=none
com1: enabled=1, mode=file, dev=$work/console.log
com2: enabled=1, mode=file, dev=$work/output
log: $work/bochs.log
panic: action=fatal
error: action=report
info: action=ignore
debug: action=ignore
sound: driver=dummy
END
    # Debian builds the emulator with its debugger, which waits for a command before the first
    # instruction and after the last.
    printf 'continue\nquit\n' >"$work/commands"
}

fetch
cpio=$(command -v cpio || echo "$root/bin/cpio")
work=$(mktemp -d "$store/run.XXXXXX")
finish() {
    for job in $(jobs -p); do kill "$job" 2>/dev/null || true; done
    if [ -n "${AVX512_KEEP:-}" ]; then echo "avx512: kept $work" >&2; else rm -rf "$work"; fi
}
trap finish EXIT

build_image "$@"
write_configuration
: >"$work/output"
: >"$work/console.log"

timeout "${AVX512_TIMEOUT:-3600}" env LD_LIBRARY_PATH="$libraries" \
    LTDL_LIBRARY_PATH="$root/usr/lib/x86_64-linux-gnu/bochs/plugins" BXSHARE="$root/usr/share/bochs" \
    "$root/usr/bin/bochs-bin" -q -f "$work/bochsrc" \
    -rc "$work/commands" >"$work/bochs.out" 2>&1 </dev/null &
emulator=$!
tail -c +1 -s 0.2 --pid="$emulator" -f "$work/output" &
output=$!
ended=0
wait "$emulator" || ended=$?
wait "$output" || true

status=$(tr -d '\r' <"$work/console.log" | sed -n 's/^avx512-exit-status \([0-9]*\)$/\1/p' | tail -n 1)
[ -n "$status" ] && exit "$status"
tail -n 15 "$work/console.log" "$work/bochs.log" "$work/bochs.out" >&2
[ "$ended" -eq 124 ] && die 124 "stopped after ${AVX512_TIMEOUT:-3600} seconds"
die 125 "the machine ended without an exit status (emulator status $ended)"
