#!/bin/sh
# Written by imprint. Changes made here are lost at the next export.
#
# Makes the users and rules of a running EMQX those of this export, over its REST
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
rules=$api/authorization/sources/built_in_database/rules/users
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

call() { curl --silent --show-error --fail --netrc-file "$EMQX_NETRC" "$@"; }

# remove URL: what is not there is removed already.
remove() {
	status=$(curl --silent --show-error --netrc-file "$EMQX_NETRC" --request DELETE \
		--output /dev/null --write-out '%{http_code}' "$1")
	case $status in
	204 | 404) ;;
	*) echo "apply.sh: DELETE $1 is answered with $status" >&2 && exit 1 ;;
	esac
}

# names URL KEY: the names in a list of the API, page by page, sorted.
names() {
	page=1
	while :; do
		call "$1?page=$page&limit=1000" >"$work/page"
		jq -r --arg key "$2" '.data[][$key]' "$work/page"
		[ "$(jq '.data | length' "$work/page")" -eq 1000 ] || break
		page=$((page + 1))
	done | LC_ALL=C sort
}

# Take away first: users that are gone, then their rules.
tail -n +2 imprint-users.csv | cut -d , -f 1 | LC_ALL=C sort >"$work/users"
names "$users/users" user_id >"$work/have"
LC_ALL=C comm -13 "$work/users" "$work/have" >"$work/gone"
while IFS= read -r name; do
	remove "$users/users/$(jq -rn --arg s "$name" '$s | @uri')"
done <"$work/gone"

jq -r .username imprint-rules.ndjson | LC_ALL=C sort >"$work/devices"
names "$rules" username >"$work/have"
LC_ALL=C comm -13 "$work/devices" "$work/have" >"$work/without"
while IFS= read -r name; do
	remove "$rules/$(jq -rn --arg s "$name" '$s | @uri')"
done <"$work/without"
cat "$work/without" >>"$work/gone"

# One curl for all devices: its configuration comes from jq, which quotes as curl does.
jq -r --arg netrc "$EMQX_NETRC" --arg rules "$rules" '
	"url = \($rules + "/" + .username | tojson)",
	"request = PUT",
	"data = \(tojson | tojson)",
	"header = \"content-type: application/json\"",
	"netrc-file = \($netrc | tojson)",
	"silent", "show-error", "fail", "output = /dev/null", "next"' imprint-rules.ndjson | sed '$d' >"$work/put"
if [ -s "$work/put" ]; then
	curl --fail-early --config "$work/put"
fi

# Then give: new users, and new passwords of old ones.
tail -n +2 imprint-users.csv | split -l 10000 - "$work/part."
for part in "$work"/part.*; do
	[ -e "$part" ] || continue
	{ head -n 1 imprint-users.csv && cat "$part"; } >"$work/users.csv"
	failed=$(call --form "filename=@$work/users.csv;type=text/csv" "$users/import_users?type=hash" | jq '.failed // 0')
	if [ "${failed:-0}" -ne 0 ]; then
		echo "apply.sh: EMQX has refused $failed users" >&2
		exit 1
	fi
done
remove "$api/authorization/cache"

# Sessions last: whoever is sent away finds the door shut. The ban is for a certificate,
# until EMQX has the new CRL.
for name in "$@"; do
	printf '%s\n' "$name"
done >>"$work/gone"
until=$(jq -rn 'now + 600 | floor | todate')
LC_ALL=C sort -u "$work/gone" | while IFS= read -r name; do
	id=$(jq -rn --arg s "$name" '$s | @uri')
	remove "$api/banned/clientid/$id"
	jq -n --arg who "$name" --arg until "$until" \
		'{as: "clientid", who: $who, by: "imprint", reason: "revoked", until: $until}' |
		call --header 'content-type: application/json' --data-binary @- --output /dev/null "$api/banned"
	remove "$api/clients/$id"
done
