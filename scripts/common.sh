# shellcheck shell=bash
# common.sh: what ./demo, ./check and lab/prepare share: Debian packages, long steps with progress and a log, builds.
# Sourced, never run, by bash scripts with `set -euo pipefail`. A caller may set beforehand:
#   SAY         what messages begin with (default: the script's name)
#   STAGE_LOGS  where the logs of stages go (default: beside the lab's caches)
# Works where neither make nor meson is installed: that is what install_packages is for.

SOURCE_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
SAY=${SAY:-$(basename "$0")}
STAGE_LOGS=${STAGE_LOGS:-${BATON_LAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/baton-lab}/logs}

# What it takes to build baton, and to run its tests on this machine (the lab brings its own: lab/prepare).
# shellcheck disable=SC2034 # for those who source this
BUILD_PACKAGES=(
	gcc libc6-dev meson ninja-build pkg-config python3 patch acpica-tools
	libjansson-dev libcbor-dev libsystemd-dev libseccomp-dev libcmocka-dev
)

say() {
	echo "$SAY: $*" >&2
}

die() {
	say "$*"
	exit 1
}

as_root() {
	if [[ $(id -u) == 0 ]]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		die "needs root for '$1': run this once as root, or install sudo"
	fi
}

# Runs a step: log to a file, progress to standard error, and on failure the log's end, its path and what to do.
# A step that ends within two seconds says nothing, so that warm starts are quiet.
stage() { # TITLE REMEDY PROGRESS-FUNCTION COMMAND...
	local title=$1 remedy=$2 progress=$3 log pid status=0 start=$SECONDS
	shift 3
	log=$STAGE_LOGS/${title//[ \/]/-}.log
	mkdir -p "$STAGE_LOGS"
	set -m # a process group of its own, so that an interrupt ends the whole step
	"$@" >"$log" 2>&1 </dev/null &
	pid=$!
	set +m
	stage_saved_trap=$(trap -p EXIT)
	# shellcheck disable=SC2064 # this step's process group
	trap "kill -TERM -- -$pid 2>/dev/null" EXIT
	stage_progress "$pid" "$title" "$progress" "$log" "$start"
	wait "$pid" || status=$?
	trap - EXIT
	eval "$stage_saved_trap"
	if [[ $status != 0 ]]; then
		say "$title FAILED after $((SECONDS - start)) s (exit status $status). The end of its log:"
		tail -n 15 "$log" | sed 's/^/    /' >&2
		say "whole log: $log"
		die "what to do: $remedy"
	fi
	((SECONDS - start <= 2)) || say "$title: done in $((SECONDS - start)) s"
}

# On a terminal one line that changes every second, otherwise a line every 15 s.
stage_progress() { # PID TITLE PROGRESS-FUNCTION LOG START
	local shown=$SECONDS every=15 announced=
	[[ ! -t 2 ]] || every=1
	while kill -0 "$1" 2>/dev/null; do
		sleep 0.1
		if [[ ! $announced ]] && ((SECONDS - $5 >= 1)); then
			announced=1
			say "$2 ..."
		fi
		((SECONDS - shown >= every)) || continue
		shown=$SECONDS
		if [[ -t 2 ]]; then
			printf '\r%s: %s: %d s%s \033[K' "$SAY" "$2" $((SECONDS - $5)) "$("$3" "$4")" >&2
		else
			say "$2: $((SECONDS - $5)) s$("$3" "$4")"
		fi
	done
	[[ ! -t 2 ]] || printf '\r\033[K' >&2
}

progress_lines() { # LOG: its last line
	tail -n 1 "$1" | tr -c '[:print:]' ' ' | sed 's/^ *\(.\)/, \1/' | cut -c1-90
}

progress_ninja() { # LOG: how many of how many steps
	grep -o '^\[[0-9]*/[0-9]*\]' "$1" | tail -n 1 | sed 's/^\[\(.*\)\]$/, step \1/; s,/, of ,'
}

missing_packages() { # PACKAGE...
	local package
	for package; do
		[[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || echo "$package"
	done
}

# Installs what is missing of the Debian packages named, through apt, as root or by sudo. Nothing missing: no network.
install_packages() { # PACKAGE...
	local missing
	mapfile -t missing < <(missing_packages "$@")
	[[ ${#missing[@]} -gt 0 ]] || return 0
	command -v apt-get >/dev/null || die "needs Debian 12 or 13, or these by hand: ${missing[*]}"
	say "packages to install: ${missing[*]}"
	[[ $(id -u) == 0 ]] || as_root -v # asks for the password here, once
	stage "apt update" "check the network and this machine's apt sources" progress_lines as_root apt-get -q update
	stage "packages" "try: apt-get install ${missing[*]}" progress_lines \
		as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "${missing[@]}"
}

# Builds the program (not its tests) in a directory of the tree; the first time, configures it with the options given.
build_baton() { # DIRECTORY MESON-OPTION...
	local directory=$1
	shift
	stage "baton in $(realpath -m --relative-to="$SOURCE_ROOT" "$directory")" "read the log; ninja -C $directory shows it again" \
		progress_ninja configure_and_build "$directory" "$@"
}

configure_and_build() { # DIRECTORY MESON-OPTION...
	[[ -e $1/build.ninja ]] || meson setup "$1" "$SOURCE_ROOT" "${@:2}"
	ninja -C "$1" baton lab-libraries
}
