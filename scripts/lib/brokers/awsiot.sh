# The model of the AWS IoT API, in botocore, from PyPI, as pinned in
# templates/awsiot/testdata/requirements.txt. Nothing of it calls the cloud.
#
# shellcheck shell=bash

# install_awsiot makes a virtual environment in
# ${IMPRINT_BROKERS:-~/.cache/imprint-brokers}/awsiot, unless it is there. The working
# directory is the root of the repository.
install_awsiot() {
	local dir="${IMPRINT_BROKERS:-$HOME/.cache/imprint-brokers}/awsiot" want=templates/awsiot/testdata/requirements.txt
	if cmp -s "$want" "$dir/requirements.txt"; then
		return
	fi
	printf 'installing models of awsiot (PyPI) into %s\n' "$dir"
	rm -rf "$dir" && python3 -m venv "$dir" &&
		"$dir/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement "$want" &&
		cp "$want" "$dir/requirements.txt" # last: it says that the rest is there
}
