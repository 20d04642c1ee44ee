# What the benchmarks share. Sourced by bash; the working directory is the root of
# the repository.
#
# shellcheck shell=bash

. scripts/lib/setup.sh

# bench_dir makes a directory with a freshly built imprint, the yardstick, a
# passphrase and a fleet, and removes it in the end.
bench_dir() {
	need_go
	need_packages openssl
	work=$(mktemp -d "${TMPDIR:-/tmp}/imprint-bench.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	mkdir "$work/bin"
	go build -o "$work/bin/imprint" ./cmd/imprint
	go build -o "$work/bin/yardstick" ./scripts/bench/yardstick
	PATH=$work/bin:$PATH
	cd "$work"
	(umask 077 && openssl rand -base64 24 >pass)
	new_fleet fleet
}

# new_fleet DIR
new_fleet() {
	imprint --fleet "$1" --passphrase-file pass init --name acme --host localhost >/dev/null
}

# list N [FIRST] writes a list of N devices.
list() { awk -v n="$1" -v from="${2:-0}" 'BEGIN { print "id,serial,label.site"; for (i = from; i < from + n; i++) printf "dev-%07d,SN-%d,Bonn\n", i, i }'; }

# recipient prints an age key that nobody has the other half of.
recipient() { echo age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p; }

# children prints the CPU seconds of all processes of this shell that have ended. It
# must not run in a subshell, which has had none.
children() {
	times >times.txt
	awk 'NR == 2 { for (i = 1; i <= 2; i++) { split($i, t, /[ms]/); s += t[1] * 60 + t[2] } print s }' times.txt
}

# timed COMMAND... runs a command without its output and sets wall and cpu
# (seconds), rss and anon (peak of all, and of anonymous memory, in MiB). It looks
# ten times a second: to look costs CPU too.
timed() {
	local pid begin before status=0 now
	anon=0 rss=0
	children >before.txt
	before=$(<before.txt)
	begin=$(date +%s.%N)
	"$@" >/dev/null 2>out.err &
	pid=$!
	while [ -e "/proc/$pid/status" ] && read -r now rss < <(awk '/^VmHWM/ { h = $2 } /^RssAnon/ { a = $2 } END { print a + 0, h + 0 }' "/proc/$pid/status" 2>/dev/null) && [ "$rss" -gt 0 ]; do
		[ "$now" -le "$anon" ] || anon=$now
		peak=$rss
		sleep 0.1
	done
	wait $pid || status=$?
	wall=$(calc "$(date +%s.%N) - $begin")
	[ $status = 0 ] || die 1 "failed: $* ($(tail -n 1 out.err))"
	children >after.txt
	cpu=$(calc "$(<after.txt) - $before")
	anon=$(calc "$anon / 1024") rss=$(calc "${peak:-0} / 1024")
}

calc() { awk "BEGIN { printf \"%.2f\", $1 }"; }

# median prints the middle one of its arguments.
median() { printf '%s\n' "$@" | sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

# goal NAME VALUE RELATION BOUND UNIT prints one line of the report.
goal() {
	local verdict=over
	awk "BEGIN { exit !($2 $3 $4) }" && verdict=PASS
	printf '  %-44s %10s %-10s goal %s %s   %s\n' "$1" "$2" "$5" "$3" "$4" "$verdict"
}
