#!/bin/sh
# Sees to it that the stores are there that the tests of remote repositories
# run against: versitygw, an S3 server over a directory, and sshd.
#
#   scripts/stores.sh          installs what is missing
#   scripts/stores.sh list     what is there, installs nothing
#
# They are looked for on PATH, in the usual places and in the cache directory
# ($TIDEMARK_STORES_CACHE, /var/cache/tidemark/bin, or ~/.cache/tidemark/bin),
# which lies outside the repository. versitygw is built there by `go install`,
# which takes two minutes once; sshd comes from the system's package manager.
# Prints where each is; exits 1 with one sentence where one could not be had.
# Without them the tests of those stores are skipped.
set -eu

version=v1.8.0

say() { echo "stores.sh: $*" >&2; }
die() { say "$*"; exit 1; }

if [ -n "${TIDEMARK_STORES_CACHE:-}" ]; then
	cache=$TIDEMARK_STORES_CACHE
elif [ -d /var/cache/tidemark/bin ] || [ "$(id -u)" = 0 ]; then
	cache=/var/cache/tidemark/bin
else
	cache=${XDG_CACHE_HOME:-$HOME/.cache}/tidemark/bin
fi

# find_in NAME DIR...: where a program is, on PATH or in one of the directories.
find_in() {
	name=$1
	shift
	if command -v "$name" 2>/dev/null; then return; fi
	for dir in "$@"; do
		if [ -x "$dir/$name" ]; then
			echo "$dir/$name"
			return
		fi
	done
	return 1
}

where_versitygw() { find_in versitygw "$cache"; }
where_sshd() { find_in sshd /usr/sbin /usr/local/sbin /usr/libexec; }

build_versitygw() {
	command -v go >/dev/null || return 1
	mkdir -p "$cache" || return 1
	work=$(mktemp -d "$cache/build.XXXXXX") || return 1
	say "building versitygw $version into $cache"
	# Outside of the module, so that go.mod has no part in it.
	if (cd "$work" && GOFLAGS= GOBIN="$work" go install "github.com/versity/versitygw/cmd/versitygw@$version" >&2); then
		chmod go+rx "$work/versitygw" "$cache"
		mv "$work/versitygw" "$cache/versitygw" # whole, or not at all
		rm -rf "$work"
	else
		rm -rf "$work"
		return 1
	fi
}

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
		sudo -n "$@"
	else
		return 1
	fi
}

install_sshd() {
	say "installing the OpenSSH server"
	if command -v apt-get >/dev/null; then
		as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends openssh-server openssh-client >&2 ||
			{ as_root apt-get update -q >&2 && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends openssh-server openssh-client >&2; }
	elif command -v dnf >/dev/null; then
		as_root dnf install -q -y openssh-server openssh-clients >&2
	elif command -v apk >/dev/null; then
		as_root apk add --quiet openssh-server openssh-client >&2
	else
		return 1
	fi
}

case ${1:-ensure} in
list)
	echo "versitygw: $(where_versitygw || echo -)"
	echo "sshd: $(where_sshd || echo -)"
	;;
ensure)
	where_versitygw >/dev/null || build_versitygw || die "versitygw could not be built: go install github.com/versity/versitygw/cmd/versitygw@$version"
	where_sshd >/dev/null || install_sshd || die "there is no sshd: install the OpenSSH server"
	echo "versitygw: $(where_versitygw)"
	echo "sshd: $(where_sshd)"
	;;
*) die "usage: scripts/stores.sh [ensure | list]" ;;
esac
