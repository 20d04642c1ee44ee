# Aedes from npm, as pinned in templates/aedes/testdata/npm. Node.js 20 or later.
#
# shellcheck shell=bash

# install_aedes installs it into ${IMPRINT_BROKERS:-~/.cache/imprint-brokers}/aedes,
# unless it is there. The working directory is the root of the repository.
install_aedes() {
	local dir="${IMPRINT_BROKERS:-$HOME/.cache/imprint-brokers}/aedes" src=templates/aedes/testdata/npm
	if [ -e "$dir/node_modules" ] && cmp -s "$src/package-lock.json" "$dir/package-lock.json"; then
		return
	fi
	printf 'installing Aedes (npm) into %s\n' "$dir"
	rm -rf "$dir" && mkdir -p "$dir" && cp "$src/package.json" "$src/package-lock.json" "$dir" &&
		npm ci --prefix "$dir" --ignore-scripts --no-audit --no-fund --loglevel error
}
