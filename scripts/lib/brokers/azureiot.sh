# The models of IoT Hub and Event Grid, in Azure's SDKs, from PyPI, as pinned in
# templates/azureiot/testdata/requirements.txt. Nothing of it calls the cloud.
#
# shellcheck shell=bash

# install_azureiot makes a virtual environment in
# ${IMPRINT_BROKERS:-~/.cache/imprint-brokers}/azureiot, unless it is there. The working
# directory is the root of the repository.
install_azureiot() {
	local dir="${IMPRINT_BROKERS:-$HOME/.cache/imprint-brokers}/azureiot" want=templates/azureiot/testdata/requirements.txt
	if cmp -s "$want" "$dir/requirements.txt"; then
		return
	fi
	printf 'installing models of azureiot (PyPI) into %s\n' "$dir"
	rm -rf "$dir" && python3 -m venv "$dir" &&
		"$dir/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement "$want" &&
		cp "$want" "$dir/requirements.txt" # last: it says that the rest is there
}
