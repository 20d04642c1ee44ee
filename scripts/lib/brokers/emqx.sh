# EMQX itself is in no package registry. What is here reads its configuration: a parser
# of HOCON from PyPI.
#
# shellcheck shell=bash

# install_emqx makes a virtual environment of Python with pyhocon in
# ${IMPRINT_BROKERS:-~/.cache/imprint-brokers}/emqx, unless it is there.
install_emqx() {
	local dir="${IMPRINT_BROKERS:-$HOME/.cache/imprint-brokers}/emqx" want="pyhocon==0.3.63 pyparsing==3.2.5"
	if [ "$(cat "$dir/imprint-installed" 2>/dev/null)" = "$want" ]; then
		return
	fi
	printf 'installing a parser of HOCON (PyPI) into %s\n' "$dir"
	# shellcheck disable=SC2086 # two words
	rm -rf "$dir" && python3 -m venv "$dir" &&
		"$dir/bin/pip" --quiet --disable-pip-version-check install $want &&
		printf '%s\n' "$want" >"$dir/imprint-installed"
}
