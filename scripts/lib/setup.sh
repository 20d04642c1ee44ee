# What the scripts share: a Go that is new enough, and the programs that the
# tests and the quickstart run. Sourced by bash; the working directory is the
# root of the repository. Nothing is installed that is already there, and what is
# installed is said first.
#
# shellcheck shell=bash

# EX_UNAVAILABLE of sysexits.h: something needed is not there and may not be
# installed from here.
readonly exit_unavailable=69

# Debian does not put mosquitto's directory on the path of an ordinary user.
PATH=$PATH:/usr/sbin:/sbin

# Stamping a binary with the commit fails in a checkout that another user owns.
export GOFLAGS="${GOFLAGS:+$GOFLAGS }-buildvcs=false"

# Debian package | what shows that it is there | why. A program is looked for on
# the path, a header where the compiler looks: who has them from elsewhere needs
# no package.
readonly package_table='
mosquitto         | mosquitto              | the broker: exports are proven on it
mosquitto-clients | mosquitto_pub          | publishes and subscribes as a device does
rabbitmq-server   | /usr/lib/rabbitmq/bin/rabbitmq-server | another broker that exports are proven on
openssl           | openssl                | second opinion on every certificate and CRL
gnutls-bin        | certtool               | third opinion
libmbedtls-dev    | mbedtls/x509_crt.h     | what many microcontrollers run
libwolfssl-dev    | wolfssl/ssl.h          | what the others run
gcc               | gcc                    | compiles the two checks above; go test -race needs it too
libc6-dev         | stdlib.h               | headers for gcc
softhsm2          | softhsm2-util          | a PKCS #11 token in software
opensc            | pkcs11-tool            | looks into that token
strace            | strace                 | makes a write or an fsync fail
jq                | jq                     | reads what the interface of a broker answers
curl              | curl                   | talks to the server as a script does
strongswan-pki    | pki                    | an EST client
libstrongswan-extra-plugins | /usr/lib/ipsec/plugins/libstrongswan-curl.so | lets that client speak HTTPS
libstrongswan-standard-plugins | /usr/lib/ipsec/plugins/libstrongswan-openssl.so | lets it sign with elliptic curves
default-jdk-headless | javac               | runs two brokers and the next one
libbcpkix-java    | /usr/share/java/bcpkix.jar | another EST client
maven             | mvn                    | brings brokers from Maven Central
nodejs            | node                   | runs brokers from npm
npm               | npm                    | brings them
cargo             | cargo                  | builds a broker in Rust
erlang-base       | erl                    | reads what brokers in Erlang read
erlang-crypto     | /usr/lib/erlang/lib/crypto-*/ebin/crypto.app | and hashes as they do
python3-venv      | /usr/share/doc/python3-venv/copyright | runs what comes from PyPI
swtpm             | swtpm                  | a TPM 2.0 in software
'

say() { printf '%s\n' "$*"; }

# die STATUS TEXT...: the reason on standard error, and the end.
die() {
	local status=$1
	shift
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit "$status"
}

# need_go ends the script unless there is a Go that the module can be built with.
need_go() {
	local want have
	want=$(sed -n 's/^go \([0-9]*\.[0-9]*\).*/\1/p' go.mod)
	command -v go >/dev/null ||
		die $exit_unavailable "there is no go on the path: Go $want or later is needed"
	# In a module, a go that is too old fetches the right one, or says why not.
	have=$(go env GOVERSION 2>&1) ||
		die $exit_unavailable "Go $want or later is needed: $have"
	have=${have#go}
	if [ "$(printf '%s\n' "$want" "$have" | sort -V | head -n 1)" != "$want" ]; then
		die $exit_unavailable "Go $want or later is needed, this is $have"
	fi
}

# package_field PACKAGE N prints field N of the table.
package_field() {
	awk -F' *[|] *' -v p="$1" -v n="$2" '$1 == p { print $n }' <<<"$package_table"
}

# all_packages prints every package of the table.
all_packages() { awk -F' *[|] *' 'NF > 1 { print $1 }' <<<"$package_table"; }

# is_there PACKAGE: is what the package brings already here?
is_there() {
	local probe
	probe=$(package_field "$1" 2)
	case $probe in
	'') die 70 "the set-up does not know a package $1" ;;
	*.h) command -v gcc >/dev/null && echo "#include <$probe>" | gcc -E -xc - >/dev/null 2>&1 ;;
	/*) compgen -G "$probe" >/dev/null ;;
	*) command -v "$probe" >/dev/null ;;
	esac
}

# need_packages PACKAGE... installs what is missing, as root or by sudo without a
# password; elsewhere it ends with the line that does it.
need_packages() {
	local p as_root=() missing=()
	for p in "$@"; do
		is_there "$p" || missing+=("$p")
	done
	[ ${#missing[@]} -gt 0 ] || return 0

	say "missing here, from Debian packages:"
	for p in "${missing[@]}"; do
		printf '  %-18s %s\n' "$p" "$(package_field "$p" 3)"
	done
	if [ "$(id -u)" != 0 ]; then
		as_root=(sudo)
		sudo -n true 2>/dev/null || as_root=()
	fi
	if ! command -v apt-get >/dev/null || { [ "$(id -u)" != 0 ] && [ ${#as_root[@]} = 0 ]; }; then
		die $exit_unavailable "these may not be installed from here; as root, run: apt-get install --no-install-recommends ${missing[*]}"
	fi
	say "installing with apt-get"
	install_packages "${missing[@]}" ||
		die $exit_unavailable "apt-get could not install: ${missing[*]}"
	for p in "${missing[@]}"; do
		is_there "$p" || die $exit_unavailable "$p is installed, and its $(package_field "$p" 2) is still not found"
	done
	stop_service_of "${missing[@]}"
}

# install_packages uses as_root of its caller. Package lists are fetched only
# when those here do not do.
install_packages() {
	local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y)
	"${apt[@]}" install --no-install-recommends "$@" >/dev/null 2>&1 && return 0
	"${apt[@]}" update >/dev/null && "${apt[@]}" install --no-install-recommends "$@" >/dev/null
}

# stop_service_of: Debian starts a broker when it is installed. The tests run
# their own, on ports of their own; a second one that nobody asked for is turned
# off again. A broker that was here before is not touched.
stop_service_of() {
	local broker
	for broker in mosquitto rabbitmq-server; do
		case " $* " in *" $broker "*) ;; *) continue ;; esac
		say "turning off the $broker service that the package has started"
		"${as_root[@]}" invoke-rc.d "$broker" stop >/dev/null 2>&1 || true
		if [ -d /run/systemd/system ]; then
			"${as_root[@]}" systemctl disable "$broker" >/dev/null 2>&1 || true
		fi
	done
}

# need_brokers installs the brokers that come from registries of other languages, and
# the models of the clouds, each by the script with its name.
need_brokers() {
	local script name
	for script in scripts/lib/brokers/*.sh; do
		name=$(basename "$script" .sh)
		# shellcheck disable=SC1090 # each has the function that is called
		. "$script"
		"install_$name" || die $exit_unavailable "$name could not be installed: see $script"
	done
}

# tool NAME MODULE-PATH VERSION prints the path of a Go program of exactly that
# version. It is built once, beside the build cache, by the Go that is here: a
# linter that was built with an older Go cannot read newer code.
tool() {
	local dir
	dir=$(dirname "$(go env GOCACHE)")/imprint-tools/$1-$3-$(go env GOVERSION)
	if [ ! -x "$dir/$1" ]; then
		say "building $1 $3, once" >&2
		GOBIN=$dir go install "$2@$3" >&2 || return
	fi
	printf '%s\n' "$dir/$1"
}
