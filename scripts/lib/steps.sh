# Steps with a heading, their seconds, and a verdict at the end. Sourced by bash.
#
# shellcheck shell=bash

failed=()
notes=()
started=$SECONDS

# step NAME COMMAND...: runs the command under a heading. A failure is kept for
# the verdict and the rest goes on: one run shows all there is to mend. (The
# command runs without set -e, as in every condition: a function that is given
# here has to return its own failures.)
step() {
	local name=$1 begin=$SECONDS status=0
	shift
	printf '\n== %s\n' "$name"
	"$@" || status=$?
	if [ "$status" = 0 ]; then
		printf -- '-- %s: ok, %d s\n' "$name" $((SECONDS - begin))
	else
		printf -- '-- %s: FAILED (status %d), %d s\n' "$name" "$status" $((SECONDS - begin))
		failed+=("$name")
	fi
}

# note TEXT: said again in the verdict.
note() {
	printf '%s\n' "$*"
	notes+=("$*")
}

# verdict prints what failed and what could not be looked at, and returns 1 if
# anything failed.
verdict() {
	local n
	printf '\n== after %d s\n' $((SECONDS - started))
	for n in "${notes[@]}"; do printf 'note: %s\n' "$n"; done
	if [ ${#failed[@]} -gt 0 ]; then
		printf 'FAILED: %s\n' "${failed[@]}"
		return 1
	fi
	printf 'all passed\n'
}
