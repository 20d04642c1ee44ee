# aMQTT from PyPI, as pinned in templates/amqtt/testdata/requirements.txt. Python 3.11 or
# later, with the package python3-venv.
#
# shellcheck shell=bash

# install_amqtt installs it into ${IMPRINT_BROKERS:-~/.cache/imprint-brokers}/amqtt,
# unless it is there. The working directory is the root of the repository.
install_amqtt() {
	local dir="${IMPRINT_BROKERS:-$HOME/.cache/imprint-brokers}/amqtt" src=templates/amqtt/testdata/requirements.txt
	if [ -e "$dir/bin/amqtt" ] && cmp -s "$src" "$dir/requirements.txt"; then
		return
	fi
	printf 'installing aMQTT (PyPI) into %s\n' "$dir"
	rm -rf "$dir" && python3 -m venv "$dir" &&
		"$dir/bin/pip" install --quiet --disable-pip-version-check --requirement "$src" && cp "$src" "$dir/requirements.txt"
}
