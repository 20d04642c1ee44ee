# Mosca from npm, as pinned in templates/mosca/testdata/npm. Node.js 16.9 or later; Mosca is unmaintained.
#
# shellcheck shell=bash

# install_mosca installs it into ${IMPRINT_BROKERS:-~/.cache/imprint-brokers}/mosca,
# unless it is there. The working directory is the root of the repository.
install_mosca() {
	local dir="${IMPRINT_BROKERS:-$HOME/.cache/imprint-brokers}/mosca" src=templates/mosca/testdata/npm
	if [ -e "$dir/node_modules" ] && cmp -s "$src/package-lock.json" "$dir/package-lock.json"; then
		return
	fi
	printf 'installing Mosca (npm) into %s\n' "$dir"
	rm -rf "$dir" && mkdir -p "$dir" && cp "$src/package.json" "$src/package-lock.json" "$dir" &&
		npm ci --prefix "$dir" --ignore-scripts --no-audit --no-fund --loglevel error
}
