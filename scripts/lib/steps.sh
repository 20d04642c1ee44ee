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
	local name=$1 begin=$SECONDS status=0 said=${#notes[@]} outcome=ok
	shift
	printf '\n== %s\n' "$name"
	"$@" || status=$?
	if [ "$status" != 0 ]; then
		outcome="FAILED (status $status)"
		failed+=("$name")
	elif [ ${#notes[@]} -gt "$said" ]; then
		outcome='not done, see the note'
	fi
	printf -- '-- %s: %s, %d s\n' "$name" "$outcome" $((SECONDS - begin))
}

# note TEXT: says that a step could not do its work, now and again in the verdict.
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
	if [ ${#notes[@]} -gt 0 ]; then
		printf 'all passed that was done\n'
	else
		printf 'all passed\n'
	fi
}
