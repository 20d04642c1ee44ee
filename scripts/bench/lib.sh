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

# timed COMMAND... runs a command without its output and sets wall, cpu (seconds),
# rss and anon (peak of all, and of anonymous memory, in MiB).
timed() {
	local pid a
	/usr/bin/env bash -c 'TIMEFORMAT="%R %U %S"; time "$@" >/dev/null 2>out.err' _ "$@" 2>times &
	pid=$!
	anon=0 rss=0
	while kill -0 $pid 2>/dev/null; do
		for a in $(pgrep -x imprint); do
			anon=$(awk -v m="$anon" '/^RssAnon/ { if ($2 > m) m = $2 } END { print m }' "/proc/$a/status" 2>/dev/null || echo "$anon")
			rss=$(awk -v m="$rss" '/^VmHWM/ { if ($2 > m) m = $2 } END { print m }' "/proc/$a/status" 2>/dev/null || echo "$rss")
		done
		sleep 0.02
	done
	wait $pid || die 1 "failed: $* ($(tail -n 1 out.err))"
	read -r wall user sys < <(tail -n 1 times)
	cpu=$(calc "$user + $sys")
	anon=$(calc "$anon / 1024") rss=$(calc "$rss / 1024")
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
