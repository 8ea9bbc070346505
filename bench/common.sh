# shellcheck shell=bash disable=SC2034 # what is set here is used by those who source this
# common.sh: what the programs in bench/ have in common; sourced by them with their own arguments. Sets
#   json       what --json was given, as an absolute path, or nothing
#   docs       "yes" if --docs was given
#   arguments  all others
#   results    a directory for the lab's /results, removed at the end
# and leaves the tree's root as the current directory, with baton built and the lab prepared.
json='' docs='' arguments=()
while [[ $# -gt 0 ]]; do
	case $1 in
	--json)
		json=$(readlink -m "${2:?--json needs a value}")
		shift 2
		;;
	--docs)
		docs=yes
		shift
		;;
	--help | -h)
		sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | head -n -1
		exit 0
		;;
	*)
		arguments+=("$1")
		shift
		;;
	esac
done
cd "$(dirname "$(readlink -f "$0")")/.."
# shellcheck source-path=SCRIPTDIR source=../scripts/common.sh
. scripts/common.sh

install_packages "${BUILD_PACKAGES[@]}"
lab/prepare
build_baton build
results=$(mktemp -d "${TMPDIR:-/tmp}/baton-bench.XXXXXX")
trap 'rm -rf "$results"' EXIT
