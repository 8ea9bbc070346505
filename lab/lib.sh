# shellcheck shell=bash disable=SC2034,SC2054 # variables for those who source this; QEMU's commas
# lib.sh: what lab/prepare, lab/run and lab/shell share: where things are cached and under which keys, and the command line
# of the machine that the lab emulates (L1). Sourced, never run. Messages and stages come from scripts/common.sh.

LAB_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
REPOSITORY=$(dirname "$LAB_DIR")
SAY=lab
# shellcheck source=../scripts/common.sh
. "$REPOSITORY/scripts/common.sh"

LAB_CACHE=${BATON_LAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/baton-lab}
LAB_SUITE=trixie

# The L1 root file system, which is the guests' root too. Newest versions of the suite and its backports.
LAB_PACKAGES=(
	qemu-system-x86 seabios
	python3 python3-pytest python3-qemu-qmp
	fio nvme-cli pciutils iproute2 iputils-ping ethtool procps socat jq strace gdb-minimal
	libsystemd0 libjansson4 libseccomp2 libcap2-bin
	busybox-static e2fsprogs
)

# A key names a cache entry after everything that it is made from: arguments are files, or other keys.
key_of() {
	local input
	for input; do
		if [[ -f $input ]]; then cat "$input"; else echo "$input"; fi
	done | sha256sum | cut -c1-16
}

# The kernels that L1 and its guests can have: the lab's own build, and Debian's own, of the suite and of its backports.
KERNELS=(lab debian debian-backports)

is_kernel() { # NAME
	[[ " ${KERNELS[*]} " == *" $1 "* ]]
}

kernel_suite() { # NAME (one of Debian's)
	echo "$LAB_SUITE${1#debian}"
}

# Where each cache entry is. An entry that exists is complete: it is built beside its place, then renamed.
lab_entries() {
	local root_key image_key
	root_key=$(key_of "$LAB_SUITE ${LAB_PACKAGES[*]}" "$LAB_DIR/build-root")
	image_key=$(key_of "$root_key" "$LAB_DIR"/{build-images,guest-init.c,l1-bootstrap,heartbeat.c,observer.c})
	LAB_ROOT=$LAB_CACHE/root-$root_key
	LAB_IMAGES=$LAB_CACHE/images-$image_key
	LAB_EMULATOR=$LAB_CACHE/emulator-$(key_of "$LAB_SUITE" "$LAB_DIR/build-emulator")
}

kernel_entry() { # NAME
	case $1 in
	lab) echo "$LAB_CACHE/kernel-$(key_of "$LAB_SUITE" "$LAB_DIR/build-kernel" "$LAB_DIR/kernel.fragment")" ;;
	*) echo "$LAB_CACHE/debian-kernel-$(key_of "$(kernel_suite "$1")" "${LAB_ROOT##*/}" "$LAB_DIR"/{build-debian-kernel,debian-modules,debian-init})" ;;
	esac
}

# What emulates L1 is the lab's build of QEMU; the firmware is Debian's, out of the unpacked root.
lab_qemu_command() {
	QEMU=(
		"$LAB_EMULATOR/qemu-system-x86_64"
		-L "$LAB_ROOT/tree/usr/share/qemu" -L "$LAB_ROOT/tree/usr/share/seabios"
		-L "$LAB_ROOT/tree/usr/lib/ipxe/qemu"
	)
}

# ---- the lab machine (L1) ----

# Options that lab/run and lab/shell share; both call parse_option for each of these.
cpus=2 memory=4096 kernel=lab append='' results='' verbose=''
devices=() traces=() environment=()

machine_usage() {
	cat <<-'EOF'
		  --cpus N           L1's processors (default 2)
		  --memory MB        L1's memory (default 4096)
		  --device DEV       a PCI device to pass through, alone behind a root port; the first one given is 0000:01:00.0,
		                     the second 0000:02:00.0, and so on. DEV is one of these, with further properties of QEMU's
		                     device after a comma:
		                       nvme            a drive that holds a copy of the root file system (guests boot from it)
		                       nvme:size=64M   a blank drive
		                       e1000e igb e1000 rtl8139 virtio-net   a NIC, cabled to the interface lab0 (lab1, ...) of L1
		                       virtio-blk[:size=..] virtio-rng ahci[:size=..] edu
		                     or any other -device string of QEMU's
		  --kernel KERNEL    for L1 and for guests, one of
		                       lab               the lab's own build, newest of Debian's sources, with iommufd (default)
		                       debian            Debian's kernel as it is: legacy VFIO containers, no iommufd
		                       debian-backports  the same, of Debian's backports: newer
		                     or a PATH: a kernel with everything built in, for L1 alone; its guests have the lab's
		  --append STRING    more for L1's kernel command line
		  --trace PATTERN    trace the emulator's devices (for instance 'pci_nvme_*'), into trace.log of the results;
		                     can be given several times
		  --keep DIR         /results of L1 is this directory (otherwise it is thrown away)
		  --env NAME=VALUE   environment for the script
		  --verbose          L1's kernel console on standard error
	EOF
}

# Takes the option in $1 (and its value in $2); sets `taken` to how many words that was, 0 when it is none of these.
parse_option() {
	taken=2
	case $1 in
	--verbose)
		verbose=1
		taken=1
		return
		;;
	--cpus | --memory | --device | --kernel | --append | --trace | --keep | --env)
		[[ $# -ge 2 ]] || die "$1 needs a value"
		;;
	*)
		taken=0
		return
		;;
	esac
	case $1 in
	--cpus)
		[[ $2 =~ ^[1-8]$ ]] || die "--cpus: '$2' is not a number from 1 to 8"
		cpus=$2
		;;
	--memory) memory=$2 ;;
	--device) devices+=("$2") ;;
	--kernel) kernel=$2 ;;
	--append) append=$2 ;;
	--trace) traces+=("$2") ;;
	--keep) results=$2 ;;
	--env) environment+=("$2") ;;
	esac
}

# Prepares what the machine needs; sets LAB_KERNEL, where the guests' kernel is, and kernel_file, L1's.
prepare_machine() {
	local name=lab
	if is_kernel "$kernel"; then
		name=$kernel
	elif [[ ! -f $kernel ]]; then
		die "--kernel: '$kernel' is neither a file nor one of ${KERNELS[*]}"
	fi
	"$LAB_DIR/prepare" --kernel "$name"
	lab_entries
	LAB_KERNEL=$(kernel_entry "$name")
	kernel_file=$LAB_KERNEL/vmlinux
	is_kernel "$kernel" || kernel_file=$kernel
}

# A directory of this run: control share, kernel log, blank drives, results that nobody keeps.
make_run_directory() {
	mkdir -p "$LAB_CACHE/logs"
	remove_stale_runs
	RUN=$(mktemp -d "${TMPDIR:-/tmp}/baton-lab.$$.XXXXXX")
	mkdir "$RUN/control" "$RUN/drives"
	if [[ $results ]]; then
		mkdir -p "$results"
		results=$(cd "$results" && pwd -P)
	else
		results=$RUN/results
		mkdir "$results"
	fi
}

# A run that was killed outright (SIGKILL) could not remove its directory.
remove_stale_runs() {
	local path pid
	for path in "${TMPDIR:-/tmp}"/baton-lab.*.*; do
		pid=${path##*/baton-lab.}
		[[ ! -O $path || -e /proc/${pid%%.*} ]] || rm -rf "$path"
	done
}

# Guests of a kernel with modules need these in their initramfs, and need an initramfs to find their root file system.
guest_initramfs() {
	if [[ -e $LAB_KERNEL/guest-modules.cpio ]]; then
		cat "$LAB_IMAGES/guest-initrd.cpio" "$LAB_KERNEL/guest-modules.cpio" >"$RUN/control/guest-initrd.cpio"
		echo "INITRD=/run/lab/guest-initrd.cpio ROOT_INITRD=/run/lab/guest-initrd.cpio"
	else
		echo "INITRD=/lab-cache/guest-initrd.cpio ROOT_INITRD="
	fi
}

# What L1 runs: environment and a function, as a bash file in the control share.
write_command() { # WORD...
	{
		echo "export BATON=/baton/build/baton KERNEL=/lab-kernel/bzImage VMLINUX=/lab-kernel/vmlinux $(guest_initramfs)"
		echo "export RESULTS=/results PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1"
		local pair
		for pair in "${environment[@]}"; do
			[[ $pair =~ ^[A-Za-z_][A-Za-z_0-9]*= ]] || die "--env: '$pair' is not NAME=VALUE"
			printf 'export %s=%q\n' "${pair%%=*}" "${pair#*=}"
		done
		printf 'lab_command() {\n\texec'
		printf ' %q' "$@"
		printf '\n}\n'
	} >"$RUN/control/command"
}

# The machine's command line, in the array MACHINE. Devices of L1's own are on bus 0 at fixed places, those to pass through
# behind root ports from 00:10.0 on, so that neither moves the other.
machine_command() {
	local share
	lab_qemu_command
	MACHINE=(
		"${QEMU[@]}" -name baton-lab -nodefaults -no-user-config -display none -no-reboot
		-machine q35,kernel-irqchip=split,sata=off,smbus=off -accel tcg,thread=multi -cpu "max,la57=off,erms=off,fsrm=off,fzrm=off,fsrs=off,fsrc=off"
		-smp "$cpus" -m "$memory" -device intel-iommu,intremap=on
		-kernel "$kernel_file"
		-append "root=/dev/vda rw rootfstype=ext4 init=/lab/l1-bootstrap console=ttyS0 intel_iommu=on panic=-1 nokaslr no_timer_check tsc_early_khz=1000000 tsc=reliable pty.legacy_count=0 $append"
		-serial "file:$RUN/console.log" -monitor "unix:$RUN/monitor,server=on,wait=off"
		-drive "if=none,id=root,file=$LAB_IMAGES/root.ext4,format=raw,snapshot=on,cache=unsafe"
		-device virtio-blk-pci,drive=root,addr=1
		-device virtio-serial-pci,id=ports,addr=2
	)
	[[ $kernel_file != "$LAB_KERNEL"/* || ! -e $LAB_KERNEL/l1-initrd.cpio ]] || MACHINE+=(-initrd "$LAB_KERNEL/l1-initrd.cpio")
	local slot=3 access
	for share in "baton:$REPOSITORY" "lab-cache:$LAB_IMAGES" "lab-kernel:$LAB_KERNEL" "control:$RUN/control" "results:$results"; do
		access=on
		[[ $share != control:* && $share != results:* ]] || access=off
		MACHINE+=(
			-fsdev "local,id=${share%%:*},path=${share#*:},security_model=none,readonly=$access,multidevs=remap"
			-device "virtio-9p-pci,fsdev=${share%%:*},mount_tag=${share%%:*},addr=$slot"
		)
		slot=$((slot + 1))
	done
	local i
	if [[ ${#traces[@]} == 0 ]]; then
		MACHINE+=(-d cpu_reset -D "$RUN/resets.log") # what the processors held if L1 ends in a triple fault
	else
		MACHINE+=(-msg timestamp=on -D "$results/trace.log")
	fi
	for i in "${traces[@]}"; do
		MACHINE+=(-trace "$i")
	done
	[[ ${#devices[@]} -le 15 ]] || die "--device: 15 devices at most"
	for i in "${!devices[@]}"; do
		passed_device "$i" "${devices[i]}"
	done
}

# One device to pass through, and what it needs behind it: a drive, or a cable to a NIC of L1's.
passed_device() { # INDEX DEVICE
	local i=$1 name=${2%%,*} rest='' size='' port=port$1
	[[ $2 != *,* ]] || rest=,${2#*,}
	[[ $name != *:size=* ]] || size=${name#*:size=}
	MACHINE+=(-device "pcie-root-port,id=$port,chassis=$((i + 1)),slot=$((i + 1)),addr=$(printf '%x' $((i + 16)))")
	case ${name%%:*} in
	nvme)
		add_drive "$i" "$size"
		MACHINE+=(-device "nvme,serial=lab$i,drive=drive$i,bus=$port$rest")
		;;
	virtio-blk)
		add_drive "$i" "$size"
		MACHINE+=(-device "virtio-blk-pci,drive=drive$i,disable-legacy=on,iommu_platform=on,bus=$port$rest")
		;;
	ahci)
		add_drive "$i" "$size"
		MACHINE+=(-device "ich9-ahci,id=ahci$i,bus=$port$rest" -device "ide-hd,drive=drive$i,bus=ahci$i.0")
		;;
	e1000e | igb | e1000 | rtl8139)
		add_cable "$i"
		MACHINE+=(-device "$name,netdev=net$i,mac=$(mac "$i" 60),bus=$port$rest")
		;;
	virtio-net)
		add_cable "$i"
		MACHINE+=(-device "virtio-net-pci,netdev=net$i,mac=$(mac "$i" 60),disable-legacy=on,iommu_platform=on,bus=$port$rest")
		;;
	virtio-rng)
		MACHINE+=(-device "virtio-rng-pci,disable-legacy=on,iommu_platform=on,bus=$port$rest")
		;;
	*)
		if [[ $rest == *,bus=* ]]; then
			MACHINE+=(-device "$name$rest")
		else
			MACHINE+=(-device "$name,bus=$port$rest")
		fi
		;;
	esac
}

mac() { # INDEX MARK (60 for the device that is passed through, 70 for L1's end of the cable)
	printf '52:54:00:ba:%s:%02x' "$2" "$1"
}

# What a drive holds is written to a temporary file that goes with the machine.
add_drive() { # INDEX SIZE ('' for the root file system)
	local file=$LAB_IMAGES/root.ext4 snapshot=on
	if [[ $2 ]]; then
		file=$RUN/drives/$1
		snapshot=off
		truncate -s "$2" "$file" || die "--device ...:size=$2: not a size"
	fi
	MACHINE+=(-drive "if=none,id=drive$1,file=$file,format=raw,snapshot=$snapshot,cache=unsafe")
}

NICS=0
add_cable() { # INDEX
	[[ $NICS -lt 8 ]] || die "--device: 8 NICs at most"
	MACHINE+=(
		-netdev "hubport,id=net$1,hubid=$1" -netdev "hubport,id=peer$1,hubid=$1"
		-device "virtio-net-pci,netdev=peer$1,mac=$(mac $NICS 70),addr=$(printf '%x' $((NICS + 8)))"
	)
	NICS=$((NICS + 1))
}

# Keeps the kernel log of a run that went wrong, and only the last twenty such.
keep_console() {
	local kept
	kept=$LAB_CACHE/logs/run-$(date +%Y%m%d-%H%M%S)-$$.log
	cp "$RUN/console.log" "$kept" 2>/dev/null || return 0
	! grep -qs 'Triple fault' "$RUN/resets.log" || grep -A 40 'Triple fault' "$RUN/resets.log" >>"$kept"
	find "$LAB_CACHE/logs" -name 'run-*.log' -printf '%T@ %p\n' | sort -rn | tail -n +21 | cut -d' ' -f2- | xargs -r rm -f
	echo "$kept"
}
