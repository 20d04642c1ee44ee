# ActiveMQ Artemis from Maven Central.
#
# shellcheck shell=bash

readonly artemis_version=2.40.0

# install_artemis unpacks the distribution into
# ${IMPRINT_BROKERS:-~/.cache/imprint-brokers}/artemis, unless it is there.
install_artemis() {
	local dir="${IMPRINT_BROKERS:-$HOME/.cache/imprint-brokers}/artemis" new
	if [ -e "$dir/lib/artemis-server-$artemis_version.jar" ]; then
		return
	fi
	printf 'installing ActiveMQ Artemis %s (Maven Central) into %s\n' "$artemis_version" "$dir"
	new=$(mktemp -d) &&
		mvn -q -B dependency:copy -DoutputDirectory="$new" -Dmdep.useBaseVersion=true \
			-Dartifact="org.apache.activemq:apache-artemis:$artemis_version:tar.gz:bin" &&
		tar -xzf "$new/apache-artemis-$artemis_version-bin.tar.gz" -C "$new" &&
		rm -rf "$dir" && mkdir -p "${dir%/*}" && mv "$new/apache-artemis-$artemis_version" "$dir" && rm -rf "$new"
}
