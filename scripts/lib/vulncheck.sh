# Known vulnerabilities in what we call: govulncheck, at a pinned version.
# Sourced by bash, after setup.sh and steps.sh.
#
# shellcheck shell=bash

# govulncheck's own exit status for "your code calls a vulnerable function".
readonly vuln_found=3

# vulncheck fails if a known vulnerability can be reached from our code. The
# advisories come from the Go project's database, or from $GOVULNDB: a mirror, or
# file:///DIR with a copy of it. Where none can be reached nothing is known, and
# that is said in the verdict; with vulndb_required=1 it is a failure.
vulncheck() {
	local bin out status=0
	bin=$(tool govulncheck golang.org/x/vuln/cmd/govulncheck v1.8.0) || return
	vulncheck_alarm "$bin" || return

	out=$("$bin" -tags pkcs11 ${GOVULNDB:+-db "$GOVULNDB"} ./... 2>&1) || status=$?
	printf '%s\n' "$out"
	case $status,$out in
	0,* | "$vuln_found",*) return "$status" ;;
	*'fetching vulnerabilities'*)
		note "NOT CHECKED for known vulnerabilities: the database is out of reach (set GOVULNDB to a copy)"
		return "${vulndb_required:-0}"
		;;
	esac
	return "$status"
}

# vulncheck_alarm BIN proves that the alarm rings: with a database that holds one
# invented advisory, against a function that the store calls, govulncheck has to
# find it. A gate that cannot fail is no gate, and this one mostly has no reason.
vulncheck_alarm() {
	local db status=0 out
	db=$(mktemp -d) || return
	mkdir "$db/index" "$db/ID"
	printf '{"modified":"2026-01-01T00:00:00Z"}\n' >"$db/index/db.json"
	cat >"$db/index/modules.json" <<-'JSON'
		[{"path":"go.etcd.io/bbolt","vulns":[{"id":"GO-0000-0001","modified":"2026-01-01T00:00:00Z"}]}]
	JSON
	cat >"$db/ID/GO-0000-0001.json" <<-'JSON'
		{"schema_version":"1.3.1","id":"GO-0000-0001","modified":"2026-01-01T00:00:00Z",
		 "published":"2026-01-01T00:00:00Z","summary":"an invented advisory",
		 "affected":[{"package":{"name":"go.etcd.io/bbolt","ecosystem":"Go"},
		  "ranges":[{"type":"SEMVER","events":[{"introduced":"0"}]}],
		  "ecosystem_specific":{"imports":[{"path":"go.etcd.io/bbolt","symbols":["Open"]}]}}],
		 "database_specific":{"url":"none","review_status":"REVIEWED"}}
	JSON
	out=$("$1" -db "file://$db" ./inventory/boltstore 2>&1) || status=$?
	rm -rf "$db"
	if [ "$status" != "$vuln_found" ]; then
		printf '%s\n' "$out"
		printf 'govulncheck did not find an invented advisory (status %d)\n' "$status"
		return 1
	fi
	printf 'an invented advisory against bbolt.Open is found: the alarm works\n'
}
