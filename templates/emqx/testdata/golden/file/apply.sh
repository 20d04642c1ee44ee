#!/bin/sh
# Written by imprint. Changes made here are lost at the next export.
#
# Makes the users and the access list of a running EMQX those of this export, over its REST
# API; then ends the sessions of users that are gone, and of each DEVICE:
#
#   EMQX_NETRC=FILE ./apply.sh [DEVICE...]
#
# FILE has an API key of the broker, mode 0600: machine 127.0.0.1 login KEY password SECRET
# EMQX_API is where the API is, if not http://127.0.0.1:18083/api/v5.
# It needs curl and jq, and may be run again at any time.
set -eu
cd "$(dirname "$0")"
api=${EMQX_API:-http://127.0.0.1:18083/api/v5}
: "${EMQX_NETRC:?names the file with the API key}"
users=$api/authentication/password_based%3Abuilt_in_database
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

call() { curl --silent --show-error --fail --netrc-file "$EMQX_NETRC" "$@"; }

# each METHOD URL: one curl for all the names of standard input. Its configuration
# comes from jq, which quotes as curl does. What is not there has been removed already.
each() {
	jq -rR --arg method "$1" --arg url "$2" --arg netrc "$EMQX_NETRC" '
		"url = \($url + "/" + @uri | tojson)", "request = \($method)", "netrc-file = \($netrc | tojson)",
		"silent", "show-error", "output = /dev/null", "write-out = \"%{http_code} %{url_effective}\\n\"", "next"' >"$work/calls"
	curls >"$work/answers"
	if grep -v -e '^204 ' -e '^404 ' "$work/answers" >&2; then
		echo "apply.sh: EMQX has refused what is above" >&2
		exit 1
	fi
}

# curls runs what is in $work/calls, without the word next at its end.
curls() {
	[ -s "$work/calls" ] || return 0
	sed '$d' "$work/calls" >"$work/config"
	curl --fail-early --config "$work/config"
}

# names URL KEY: the names in a list of the API, page by page, into $work/have.
names() {
	page=1
	: >"$work/have"
	while :; do
		call --output "$work/page" "$1?page=$page&limit=1000"
		jq -r --arg key "$2" '.data[][$key]' "$work/page" >>"$work/have"
		rows=$(jq '.data | length' "$work/page")
		[ "$rows" -eq 1000 ] || break
		page=$((page + 1))
	done
	LC_ALL=C sort -o "$work/have" "$work/have"
}

# Take away first: users that are gone, then the access list.
tail -n +2 imprint-users.csv >"$work/lines"
cut -d , -f 1 "$work/lines" >"$work/users"
LC_ALL=C sort -o "$work/users" "$work/users"
names "$users/users" user_id
LC_ALL=C comm -13 "$work/users" "$work/have" >"$work/gone"
each DELETE "$users/users" <"$work/gone"

jq -Rs '{type: "file", enable: true, rules: .}' imprint-acl.conf >"$work/acl"
call --request PUT --header 'content-type: application/json' --data-binary "@$work/acl" \
	--output /dev/null "$api/authorization/sources/file"

# Then give: new users, and new passwords of old ones.
split -l 10000 "$work/lines" "$work/part."
for part in "$work"/part.*; do
	[ -e "$part" ] || continue
	head -n 1 imprint-users.csv >"$work/users.csv"
	cat "$part" >>"$work/users.csv"
	call --output "$work/imported" --form "filename=@$work/users.csv;type=text/csv" "$users/import_users?type=hash"
	failed=$(jq '.failed // 0' "$work/imported")
	if [ "${failed:-0}" -ne 0 ]; then
		echo "apply.sh: EMQX has refused $failed users" >&2
		exit 1
	fi
done
echo cache >"$work/cache"
each DELETE "$api/authorization" <"$work/cache"

# Sessions last: whoever is sent away finds the door shut. The ban is for a certificate,
# until EMQX has the new CRL.
for name in "$@"; do
	printf '%s\n' "$name" >>"$work/gone"
done
LC_ALL=C sort -u -o "$work/gone" "$work/gone"
each DELETE "$api/banned/clientid" <"$work/gone"
jq -rR --arg until "$(jq -rn 'now + 600 | floor | todate')" --arg url "$api/banned" --arg netrc "$EMQX_NETRC" '
	"url = \($url | tojson)",
	"data = \({as: "clientid", who: ., by: "imprint", reason: "revoked", until: $until} | tojson | tojson)",
	"header = \"content-type: application/json\"",
	"netrc-file = \($netrc | tojson)",
	"silent", "show-error", "fail", "output = /dev/null", "next"' "$work/gone" >"$work/calls"
curls
each DELETE "$api/clients" <"$work/gone"
