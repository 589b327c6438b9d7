#!/usr/bin/env bash
# The failover playbook: a real PostgreSQL cluster of three nodes under load goes
# through backup, switchover, crash, failover, divergence, rewind and point-in-time
# recovery. `make demo` runs it; it is also a test.
#
#   examples/failover-playbook.sh [DIR]
#
# DIR is a scratch directory, by default a new one that is removed at the end.
# Besides the five commands and the client examples/ledger it uses initdb, pg_ctl,
# psql and pgbench. Run as root it hands the nodes to an unprivileged user.
set -euo pipefail

# ------------------------------------------------------------------ settings
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bin=${TIDEMARK_DEMO_BIN:-$root/bin}       # where the commands are
scale=${TIDEMARK_DEMO_SCALE:-10}          # pgbench's scale: 10 is about 150 MB
rate=${TIDEMARK_DEMO_RATE:-150}           # transactions a second
lonely=12                                 # rows written to the abandoned primary
user=${TIDEMARK_DEMO_USER:-postgres}      # who owns the nodes, when run as root

# ------------------------------------------------------------------ small tools
if [ -t 1 ]; then bold=$'\e[1m' plain=$'\e[0m'; else bold='' plain=''; fi
step_no=0
step() { step_no=$((step_no + 1)); printf '\n%s%d. %s%s\n' "$bold" "$step_no" "$*" "$plain"; }
note() { printf '   %s\n' "$*"; }
die() { printf '\nThe playbook stops: %s\n' "$*" >&2; exit 1; }
now() { echo "${EPOCHREALTIME/[.,]/}"; } # microseconds
seconds() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.1f s", (b - a) / 1e6 }'; }
mib() { awk -v n="$1" 'BEGIN { printf "%.1f MiB", n / 1048576 }'; }
dir_bytes() { du -sb "$1" | cut -f1; }

# run COMMAND...: shows the command and its output; expect CODE does not die of it.
run() { expect 0 "$@"; }
expect() {
	local want=$1 got=0
	shift
	printf '%s$ %s%s\n' "$bold" "$(shown "$@")" "$plain"
	"$@" || got=$?
	[ "$got" = "$want" ] || die "$1 ended with $got, not $want"
}
shown() {
	local out='' word
	for word in "$@"; do
		word=${word//$dir\//}
		case $word in *[!A-Za-z0-9_./:=,%@+-]*) word="'$word'" ;; esac
		out+="$word "
	done
	printf '%s' "${out% }"
}
# field FILE NAME: a scalar of an indented JSON document.
field() { sed -n "s/^ *\"$2\": *\"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p" "$1" | head -n 1; }
# moved FILE: what a command said that it moved.
moved() { sed -n 's/^ *bytes moved  *//p' "$1"; }
# wait_for SECONDS WHAT COMMAND...: until the command succeeds.
wait_for() {
	local end=$(($(now) + $1 * 1000000)) what=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		[ "$(now)" -lt "$end" ] || die "$what took too long"
		sleep 0.1
	done
}
# gone PID: no such process; one that only waits for its parent still counts for the server.
gone() { ! kill -0 "$1" 2>/dev/null; }
# dead PID: it has ended, whether or not its parent has taken note.
dead() { gone "$1" || grep -q '^State:[[:space:]]*Z' "/proc/$1/status" 2>/dev/null; }
# row WHAT TOOK MOVED OF LOST: a line of the table at the end.
row() { printf '%s\t%s\t%s\t%s\t%s\n' "$@" >>"$dir/table"; }

sql() { psql -XqAt -d "port=$1" -v ON_ERROR_STOP=1 -c "$2"; }
as_owner() { if [ "$(id -u)" = 0 ]; then runuser -u "$user" -- "$@"; else "$@"; fi; }
port_of() { case $1 in alpha) echo "$p1" ;; bravo) echo "$p2" ;; charlie) echo "$p3" ;; esac; }

# ------------------------------------------------------------------ surroundings
for program in psql pgbench; do
	command -v "$program" >/dev/null || PATH=$PATH:$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -n 1)
	command -v "$program" >/dev/null || die "$program is missing: install PostgreSQL's client programs"
done
pgbin=${TIDEMARK_DEMO_BINDIR:-$("$root/scripts/postgres.sh" ensure | sed 's/^.*: //')}
[ -x "$pgbin/initdb" ] || die "there is no initdb in $pgbin"
for command in dbbackup dbrecover dbrewind dbrepl dbctl ledger; do
	[ -x "$bin/$command" ] || die "$bin/$command is missing: run make demo"
done

if [ $# -gt 0 ]; then
	mkdir -p "$1" && dir=$(cd "$1" && pwd) keep=yes
else
	dir=$(mktemp -d /tmp/tidemark-demo.XXXXXX) keep=
fi
[ ${#dir} -le 80 ] || die "$dir is too long for the name of a socket"
mkdir -p "$dir/bin" "$dir/run" "$dir/repo"
# The server's archive_command must be able to run them, whoever it runs as.
cp "$bin"/db* "$bin/ledger" "$dir/bin/"
chmod 755 "$dir" "$dir/bin"
if [ "$(id -u)" = 0 ]; then
	id "$user" >/dev/null 2>&1 || user=nobody
	chown "$user" "$dir" "$dir/run" "$dir/repo"
fi
cd "$dir"
export PATH=$dir/bin:$PATH PGHOST=$dir/run PGUSER=postgres PGDATABASE=postgres PGCONNECT_TIMEOUT=5
unset PGPORT PGDATA PGSERVICE PGOPTIONS TIDEMARK_REPO TIDEMARK_CONFIG
base=${TIDEMARK_DEMO_PORT:-$((20000 + RANDOM % 20000))}
p1=$base p2=$((base + 1)) p3=$((base + 2)) p4=$((base + 3))

load_pid='' ledger_pid=''
load_on() { # load_on NODE: pgbench's transactions, at a steady rate
	pgbench -n -c 2 -R "$rate" -T 600 "port=$(port_of "$1")" >"$dir/pgbench.log" 2>&1 &
	load_pid=$!
}
load_off() {
	[ -z "$load_pid" ] || { kill "$load_pid" 2>/dev/null || true; wait "$load_pid" 2>/dev/null || true; }
	load_pid=''
}
ledger_off() {
	[ -z "$ledger_pid" ] || { kill "$ledger_pid" 2>/dev/null || true; wait "$ledger_pid" 2>/dev/null || true; }
	ledger_pid=''
}
finish() {
	local status=$?
	trap - EXIT INT TERM
	load_off
	ledger_off
	for node in alpha bravo charlie recovered; do
		[ ! -f "$dir/$node/postmaster.pid" ] || as_owner "$pgbin/pg_ctl" -D "$dir/$node" -m immediate -w stop >/dev/null 2>&1 || true
		[ "$status" = 0 ] || [ ! -f "$dir/$node.log" ] || { echo "--- the end of $node's log"; tail -n 12 "$dir/$node.log"; } >&2
	done
	cd /
	if [ -z "$keep" ]; then rm -rf "$dir"; else echo "(the nodes lie in $dir)"; fi
	exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

lost() { # lost NODE: acknowledged rows that the node does not have
	ledger verify -d "port=$(port_of "$1")" --file ledger.txt --json >verify.json 2>/dev/null || [ $? = 3 ]
	echo $(($(field verify.json acknowledged) - $(field verify.json present)))
}
pause_since() { # the longest time without an acknowledged row since a moment
	ledger verify -d "port=$(port_of "$1")" --file ledger.txt --since "$2" --json >verify.json 2>/dev/null || [ $? = 3 ]
	awk -v s="$(field verify.json longest_pause_seconds)" 'BEGIN { printf "%.1f s", s }'
}
moment() { date -u +%Y-%m-%dT%H:%M:%S.%NZ; }

# ------------------------------------------------------------------ the playbook
started=$(now)
echo "Tidemark's failover playbook, on $("$pgbin/postgres" --version), in $dir"

step "A primary, alpha, that archives its WAL into a repository"
as_owner "$pgbin/initdb" -D alpha -U postgres -A trust -k -N >initdb.log
as_owner tee -a alpha/postgresql.conf >/dev/null <<CONF
port = $p1
listen_addresses = ''
unix_socket_directories = '$dir/run'
shared_buffers = 64MB
max_connections = 30
wal_keep_size = 1GB
archive_mode = on
archive_command = '$dir/bin/dbbackup push --repo $dir/repo --quiet "%p"'
restore_command = '$dir/bin/dbrecover fetch --repo $dir/repo --quiet "%f" "%p"'
CONF
cat >tidemark.toml <<TOML
bindir = "$pgbin"

[cluster]
name = "playbook"

[repository]
path = "$dir/repo"

[[node]]
name = "alpha"
conninfo = "host=$dir/run port=$p1 user=postgres dbname=postgres"
pgdata = "$dir/alpha"

[[node]]
name = "bravo"
conninfo = "host=$dir/run port=$p2 user=postgres dbname=postgres"
pgdata = "$dir/bravo"

[[node]]
name = "charlie"
conninfo = "host=$dir/run port=$p3 user=postgres dbname=postgres"
pgdata = "$dir/charlie"
TOML
run dbbackup init
as_owner "$pgbin/pg_ctl" -D alpha -l "$dir/alpha.log" -w start >/dev/null
pgbench -i -q -s "$scale" "port=$p1" >/dev/null 2>&1
note "pgbench writes from here on, and a client that remembers every acknowledged row"
load_on alpha
ledger write --quiet -d "port=$p1,$p2,$p3 host=$PGHOST,$PGHOST,$PGHOST target_session_attrs=read-write" --file ledger.txt &
ledger_pid=$!

step "An online backup"
t=$(now)
run dbbackup create -d "port=$p1"
row "backup" "$(seconds "$t" "$(now)")" "$(mib "$(dir_bytes repo)")" "$(mib "$(dir_bytes alpha)")" -
run dbbackup list

step "Two standbys, seeded while the primary works"
for node in bravo charlie; do
	t=$(now)
	run dbrepl seed -D $node -d "port=$p1" --slot $node
	printf "port = %s\ncluster_name = '%s'\n" "$(port_of $node)" $node | as_owner tee -a $node/postgresql.conf >/dev/null
	row "seed $node" "$(seconds "$t" "$(now)")" "$(mib "$(dir_bytes $node)")" "$(mib "$(dir_bytes alpha)")" -
	run dbrepl start -D $node
done
run dbrepl sync -D charlie
run dbctl status

step "A planned switchover: alpha to bravo"
t=$(now) since=$(moment)
run dbctl switchover --to bravo --yes
load_off
load_on bravo
took=$(seconds "$t" "$(now)")
wait_for 20 "the first row after the switchover" sh -c "[ \$(wc -l <ledger.txt) -gt $(wc -l <ledger.txt) ]"
gap=$(pause_since bravo "$since") missing=$(lost bravo)
[ "$missing" = 0 ] || die "the switchover lost $missing acknowledged rows"
note "the client waited for $gap; of its acknowledged rows none is lost"
row "switchover to bravo (gap $gap)" "$took" - - 0

step "kill -9 of the primary, and failover to charlie"
since=$(moment)
victim=$(head -n 1 bravo/postmaster.pid)
note "$bold\$ kill -9 $victim$plain"
kill -9 "$victim"
wait_for 10 "the death of $victim" dead "$victim"
load_off
t=$(now)
run dbctl promote charlie --yes
took=$(seconds "$t" "$(now)")
load_on charlie
wait_for 20 "the first row after the failover" sh -c "[ \$(wc -l <ledger.txt) -gt $(wc -l <ledger.txt) ]"
gap=$(pause_since charlie "$since") missing=$(lost charlie)
note "the client waited for $gap; rows that only bravo had acknowledged: $missing"
row "failover to charlie (gap $gap)" "$took" - - "$missing"

step "bravo comes back alone and accepts writes: two primaries"
wait_for 30 "the end of bravo's processes" gone "$victim"
as_owner "$pgbin/pg_ctl" -D bravo -l "$dir/bravo.log" -w start >/dev/null 2>&1
ledger write -d "port=$p2" --file lonely.txt --from 1000001 --branch lonely --count $lonely --every 0ms
sql "$p2" "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid <= 20000"
note "$lonely rows were written to it, and one transaction changed 20,000 accounts"
expect 3 dbctl status
as_owner "$pgbin/pg_ctl" -D bravo -m fast -w stop >/dev/null

step "Where did it part, and what would be lost?"
expect 3 dbrewind check -D bravo --source-server "port=$p3" | tee check.txt

step "Rewind, and rejoin"
t=$(now)
run dbrewind -D bravo --source-server "port=$p3" -R | tee rewind.txt
row "rewind bravo" "$(seconds "$t" "$(now)")" "$(moved rewind.txt)" "$(mib "$(dir_bytes charlie)")" "$(sed -n 's/^A rewind loses \([0-9,]*\) .*/\1 transactions/p' check.txt)"
t=$(now)
run dbctl rejoin bravo --yes
row "rejoin bravo" "$(seconds "$t" "$(now)")" - - -

step "Are all nodes equal?"
ledger_off
load_off
for node in alpha bravo; do run dbrepl sync -D $node; done
fingerprint() {
	for t in ledger pgbench_accounts pgbench_branches pgbench_history pgbench_tellers; do
		sql "$1" "SELECT '$t', count(*), coalesce(sum(hashtextextended(x::text, 0)::numeric), 0) FROM $t x"
	done
}
fingerprint "$p3" >charlie.sums
for node in alpha bravo; do
	fingerprint "$(port_of $node)" >$node.sums
	cmp -s $node.sums charlie.sums || { diff $node.sums charlie.sums; die "$node differs from charlie"; }
done
note "five tables, row by row: alpha, bravo and charlie are equal"
[ "$(sql "$p3" "SELECT count(*) FROM ledger WHERE branch = 'lonely'")" = 0 ] || die "rows of the abandoned branch survived"
run dbctl status

step "A table is dropped, and recovered to just before"
before=$(sql "$p3" "SELECT clock_timestamp()")
rows=$(sql "$p3" "SELECT count(*) FROM ledger")
sql "$p3" "DROP TABLE ledger"
segment=$(sql "$p3" "SELECT pg_walfile_name(pg_switch_wal())")
wait_for 60 "archiving $segment" sh -c "[ \"\$(psql -XqAt -d port=$p3 -c \"SELECT last_archived_wal >= '$segment' FROM pg_stat_archiver\")\" = t ]"
t=$(now)
run dbrecover restore -D recovered --to-time "$before" --archive off
printf "port = %s\n" "$p4" | as_owner tee -a recovered/postgresql.conf >/dev/null
run dbrecover run -D recovered --start
row "recovery to before the drop" "$(seconds "$t" "$(now)")" "$(mib "$(dir_bytes recovered)")" "$(mib "$(dir_bytes recovered)")" 0
found=$(sql "$p4" "SELECT count(*) FROM ledger")
[ "$found" = "$rows" ] || die "$found of $rows rows were recovered"
note "the table has its $rows rows again"

# ------------------------------------------------------------------ the account
printf '\n%sWhat was done%s\n\n' "$bold" "$plain"
{
	printf 'step\ttook\tmoved\tof\trows lost\n'
	cat table
	row_total=$(seconds "$started" "$(now)")
	printf 'all of it\t%s\t\t\t\n' "$row_total"
} | awk -F '\t' '
	{ for (i = 1; i <= 5; i++) { c[NR, i] = $i; if (length($i) > w[i]) w[i] = length($i) } }
	END { for (r = 1; r <= NR; r++) {
		line = sprintf("%-*s", w[1], c[r, 1])
		for (i = 2; i <= 5; i++) line = line sprintf("  %*s", w[i], c[r, i])
		sub(/ +$/, "", line); print line } }'
