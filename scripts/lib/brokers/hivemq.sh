# HiveMQ Community Edition from Maven Central, with a reader of credentials.xml of
# ours: the File RBAC extension itself is in no Maven repository.
#
# shellcheck shell=bash

# install_hivemq builds it into ${IMPRINT_BROKERS:-~/.cache/imprint-brokers}/hivemq
# from templates/hivemq/testdata/broker, unless that has been built. The working
# directory is the root of the repository.
install_hivemq() {
	local dir="${IMPRINT_BROKERS:-$HOME/.cache/imprint-brokers}/hivemq" src=templates/hivemq/testdata/broker
	if [ -e "$dir/lib" ] && diff -rq "$src" "$dir/src" >/dev/null 2>&1; then
		return
	fi
	printf 'installing HiveMQ Community Edition (Maven Central) into %s\n' "$dir"
	rm -rf "$dir" && mkdir -p "$dir/src" && cp -R "$src/." "$dir/src" &&
		mvn -q -B -f "$dir/src/pom.xml" package dependency:copy-dependencies \
			-DincludeScope=runtime -DoutputDirectory="$dir/new" &&
		cp "$dir"/src/target/*.jar "$dir/new" && rm -rf "$dir/src/target" && mv "$dir/new" "$dir/lib"
}
