# rumqttd from crates.io, with the features without which it looks at no certificate.
# Rust with cargo; it takes a few minutes. Not as its Cargo.lock has it: a crate in there
# is refused by newer releases of Rust, and mended in a later one of its own.
#
# shellcheck shell=bash

# install_rumqttd installs it into ${IMPRINT_BROKERS:-~/.cache/imprint-brokers}/rumqttd,
# unless it is there.
install_rumqttd() {
	local dir="${IMPRINT_BROKERS:-$HOME/.cache/imprint-brokers}/rumqttd" version=0.20.0
	local features=use-rustls,verify-client-cert,validate-tenant-prefix
	if [ -e "$dir/bin/rumqttd" ] && [ "$(cat "$dir/built" 2>/dev/null)" = "$version $features" ]; then
		return
	fi
	printf 'building rumqttd (crates.io) in %s\n' "$dir"
	rm -rf "$dir" &&
		cargo install --quiet rumqttd --version "$version" --no-default-features --features "$features" --root "$dir" &&
		printf '%s' "$version $features" >"$dir/built"
}
