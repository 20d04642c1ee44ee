# What the README tells a reader to type. Sourced by bash.
#
# shellcheck shell=bash

# readme_commands runs the README's blocks that are marked sh, in their order, as
# one script in an empty directory, with a freshly built imprint on the path. A
# block with another mark (console, text) is for reading. Lines that start one of
# our scripts are only checked to be there: each is a step of its own. Lines that
# fetch or build imprint have been done.
readme_commands() {
	local dir status=0 script
	while read -r script; do
		if [ ! -x "$script" ]; then
			printf 'README names %s, which is not there or cannot be run\n' "$script"
			status=1
		fi
	done < <(readme_blocks | grep -oE '^\./(scripts|\.ci)/[A-Za-z0-9_/-]+')

	dir=$(mktemp -d) || return
	mkdir "$dir/bin" "$dir/home" &&
		go build -o "$dir/bin/imprint" ./cmd/imprint &&
		{
			printf 'set -euo pipefail\n'
			# What a reader would leave running must not be there for the next one.
			printf "trap 'kill \$(jobs -p) 2>/dev/null || true' EXIT\n"
			readme_blocks | grep -vE '^(\./scripts/|git clone|cd imprint|go (build|install) )'
		} >"$dir/readme.sh" || return
	# Nobody is there to answer a question: end of file, then, not a wait.
	(cd "$dir/home" && PATH=$dir/bin:$PATH timeout 300 bash -x ../readme.sh </dev/null) || status=1
	rm -rf "$dir"
	return $status
}

# readme_blocks prints the lines inside ```sh fences.
readme_blocks() {
	awk '/^```/ { inside = ($0 == "```sh") && !inside; next } inside' README.md
}
