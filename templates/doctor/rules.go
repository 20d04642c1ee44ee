package doctor

import "slices"

// A Rule is one thing that ought to hold. Its ID stays; the number in it groups:
// 0 all brokers, 1 Mosquitto, 2 RabbitMQ, 3 EMQX, 4 VerneMQ, 5 FlashMQ, 6 NanoMQ,
// 7 NATS, 8 HiveMQ, 9 live endpoints.
type Rule struct {
	ID       string   `json:"id"`
	Severity Severity `json:"severity"`
	Title    string   `json:"title"`
	Why      string   `json:"why"`
	Fix      string   `json:"fix"`
}

type ruleID string

const (
	rulePlaintext      ruleID = "MQ001-plaintext-listener"
	ruleAnonymous      ruleID = "MQ002-anonymous-access"
	ruleNoACL          ruleID = "MQ003-no-access-rules"
	ruleWildcard       ruleID = "MQ004-wildcard-access"
	rulePlainPassword  ruleID = "MQ005-plaintext-password" //nolint:gosec // the name of a rule
	ruleFastHash       ruleID = "MQ006-fast-password-hash"
	ruleWeakHash       ruleID = "MQ007-weak-password-hash"
	ruleSharedHash     ruleID = "MQ008-shared-password-hash"
	ruleWildcardRead   ruleID = "MQ009-wildcard-read"
	ruleNoClientCert   ruleID = "MQ010-no-client-certificate"
	ruleCertNoIdentity ruleID = "MQ011-certificate-not-identity"
	ruleClientID       ruleID = "MQ012-client-id-not-bound"
	ruleOldTLS         ruleID = "MQ013-old-tls"
	ruleNoCRL          ruleID = "MQ014-no-crl"
	ruleCRLUnreadable  ruleID = "MQ015-crl-unreadable"
	ruleCRLExpired     ruleID = "MQ016-crl-expired"
	ruleCRLExpiring    ruleID = "MQ017-crl-expiring"
	ruleCAExpired      ruleID = "MQ018-ca-expired"
	ruleCAExpiring     ruleID = "MQ019-ca-expiring"
	ruleCertExpired    ruleID = "MQ020-certificate-expired"
	ruleCertExpiring   ruleID = "MQ021-certificate-expiring"
	ruleWeakKey        ruleID = "MQ022-weak-key"
	ruleKeyReadable    ruleID = "MQ023-private-key-readable"
	ruleFileReadable   ruleID = "MQ024-password-file-readable"
	ruleDefaultUser    ruleID = "MQ025-default-user"
	ruleMissingFile    ruleID = "MQ026-file-missing"
	ruleUnsafeName     ruleID = "MQ027-unsafe-user-name"
	ruleDefaultAllow   ruleID = "MQ028-default-allow"
	ruleSubscribePlus  ruleID = "MQ029-subscribe-plus"
	ruleCertUnreadable ruleID = "MQ030-certificate-unreadable"
	ruleCRLForeign     ruleID = "MQ031-crl-of-another-ca"

	ruleACLMissing      ruleID = "MQ101-acl-file-missing"
	rulePerListener     ruleID = "MQ102-per-listener-settings"
	rulePartial         ruleID = "MQ103-partial-placeholder"
	ruleDeny            ruleID = "MQ104-deny-rule"
	ruleBeforeUser      ruleID = "MQ105-rules-before-user"
	ruleACLSyntax       ruleID = "MQ106-acl-syntax"
	rulePasswordLine    ruleID = "MQ107-password-line"
	ruleIdentityNoCert  ruleID = "MQ108-identity-without-certificate"
	ruleCRLNoEffect     ruleID = "MQ109-crl-without-effect"
	ruleNoTopicRow      ruleID = "MQ201-no-topic-permission"
	ruleUnanchored      ruleID = "MQ202-unanchored-pattern"
	ruleCRLSources      ruleID = "MQ203-crl-sources"
	ruleBestEffort      ruleID = "MQ204-crl-best-effort"
	ruleGuestRemote     ruleID = "MQ205-guest-from-anywhere"
	ruleClientIDPattern ruleID = "MQ206-client-id-in-pattern"

	ruleDefaultListener ruleID = "MQ301-default-listener"
	ruleSuperuser       ruleID = "MQ302-superuser"
	ruleLiteralRule     ruleID = "MQ401-literal-rule"
	ruleLoaderCrash     ruleID = "MQ402-loader-crash"
	ruleNoRevocation    ruleID = "MQ501-certificate-for-ever"
	ruleCutUser         ruleID = "MQ502-user-cut"
	ruleEmptyUsers      ruleID = "MQ601-empty-user-table"
	ruleEmptyTopics     ruleID = "MQ602-rule-without-topics"
	ruleAnyUser         ruleID = "MQ603-rule-for-anybody"
	rulePlainStore      ruleID = "MQ604-plaintext-store"
	ruleRefusedFile     ruleID = "MQ801-file-refused"
	ruleDeadHash        ruleID = "MQ802-hash-of-two-parts"
	ruleNextExtension   ruleID = "MQ803-next-extension"

	rulePlainEndpoint  ruleID = "MQ901-plaintext-endpoint"
	ruleUntrusted      ruleID = "MQ902-untrusted-chain"
	ruleWrongHost      ruleID = "MQ903-wrong-host-name"
	ruleAnonymousReads ruleID = "MQ904-anonymous-subscription"
)

// Rules returns the table of all rules, in the order of their IDs.
func Rules() []Rule {
	return slices.Concat(clientRules(), hygieneRules(), mosquittoRules(), brokerRules(), endpointRules())
}

// clientRules are about who gets in, and what that client may do.
func clientRules() []Rule {
	return []Rule{
		{string(rulePlaintext), Error, "A listener takes MQTT without TLS",
			"Whoever is on the way reads user names, passwords and messages, and can change them.",
			"Give the listener a certificate and a key, or bind it to 127.0.0.1."},
		{string(ruleAnonymous), Error, "Clients without a name are let in",
			"Anybody who reaches the port is a client, and no revocation can reach somebody without a name.",
			"Switch anonymous access off, and give every client a certificate or a password."},
		{string(ruleNoACL), Error, "There are no access rules",
			"Without rules every client may publish and receive everything: one stolen device is the whole fleet.",
			"Give every client the topics it needs, and deny the rest."},
		{string(ruleWildcard), Error, "A rule allows every topic",
			"One client of this kind can command and listen to all the others.",
			"Allow the client's own topics, with its name as a whole level: fleet/NAME/up/#."},
		{string(rulePlainPassword), Error, "A password is stored as it is",
			"Whoever reads the file, or a backup of it, can log in.",
			"Store a salted hash, and change the password: it has been written down."},
		{string(ruleFastHash), Note, "Passwords are stored with one round of a fast hash",
			"Random passwords of 128 bits are safe so; passwords that people chose are guessed in hours.",
			"Use random passwords only, or a scheme with a work factor: PBKDF2 ($7$), bcrypt, Argon2."},
		{string(ruleWeakHash), Error, "Passwords are stored with a broken hash",
			"MD5 and SHA-1 are guessed by the thousand million per second; without a salt, all users at once.",
			"Use PBKDF2, bcrypt or at least salted SHA-256, and change the passwords."},
		{string(ruleSharedHash), Warning, "Two users have the same password and salt",
			"The line was copied: whoever has one device's password has the other's.",
			"Give every user a password of its own."},
		{string(ruleWildcardRead), Warning, "A user may receive every topic",
			"If this user is a device, one stolen device listens to the fleet. A backend may be meant to.",
			"Allow the topics it needs. If it is an administrator, say so in its name."},
		{string(ruleNoClientCert), Warning, "A TLS listener does not require a client certificate",
			"A password can be copied from a device, and the handshake keeps no stranger away.",
			"Require a client certificate of your own CA; keep devices with passwords on a listener of their own."},
		{string(ruleCertNoIdentity), Warning, "The client certificate is not who the client is",
			"A certificate is required, but the user name is what the client says: with one device's certificate and another's password one is the other.",
			"Take the user name from the certificate's common name."},
		{string(ruleClientID), Warning, "The client identifier is not bound to the identity",
			"A client that connects with another's identifier takes over that session, with its queued messages, and throws the other out.",
			"Let the broker use the user name, or the common name, as client identifier."},
		{string(ruleOldTLS), Error, "TLS before 1.2 is allowed",
			"TLS 1.0 and 1.1 rest on MD5 and SHA-1 and are forbidden (RFC 8996).",
			"Set 1.2 as the lowest version."},
		{string(ruleNoCRL), Warning, "Revoked certificates are not refused",
			"Without a CRL a stolen device's certificate works until it expires.",
			"Give the broker the CRL of the CA of the devices and renew it in time; where the broker has none, remove the user and issue short-lived certificates."},
		{string(ruleCRLUnreadable), Error, "A CRL cannot be read",
			"Brokers do not start with it, or go on without revocation: Mosquitto 2.0 accepts revoked certificates after a reload.",
			"Write the CRL again, whole, and rename it into place."},
	}
}

// hygieneRules are about certificates, files and what is left on.
func hygieneRules() []Rule {
	return []Rule{
		{string(ruleCRLExpired), Error, "A CRL has expired",
			"Most brokers refuse every client then; others accept revoked ones.",
			"Publish a new CRL, and have an alarm long before nextUpdate."},
		{string(ruleCRLExpiring), Warning, "A CRL is in the second half of its life",
			"It should have been renewed by now; when it expires, most brokers refuse every client.",
			"See why no new CRL has come."},
		{string(ruleCAExpired), Error, "A CA certificate has expired",
			"All certificates below it are refused.",
			"Replace it, and take it out of the bundle."},
		{string(ruleCAExpiring), Warning, "A CA certificate expires within 90 days",
			"New trust has to reach every device before the old ends, and devices may be offline for weeks.",
			"Start the rotation now: add the successor to the bundle and issue from it."},
		{string(ruleCertExpired), Error, "The server certificate is not valid now",
			"Clients that check it do not connect; the others teach that checks can be left out.",
			"Renew it, and renew automatically."},
		{string(ruleCertExpiring), Warning, "The server certificate expires within 30 days",
			"When it does, the fleet is offline.",
			"Renew it, and renew automatically."},
		{string(ruleWeakKey), Error, "A certificate has a weak key or signature",
			"RSA below 2048 bits, curves below 256 bits, MD5 and SHA-1 do not keep a forger away.",
			"Replace it: P-256 or RSA 2048, with SHA-256."},
		{string(ruleKeyReadable), Error, "A private key can be read by everybody on the machine",
			"Any process there can be the broker.",
			"chmod 0640 at most, owned by the broker's user; replace the key if others use the machine."},
		{string(ruleFileReadable), Warning, "A password file can be read by everybody on the machine",
			"Hashes that are read can be guessed at, elsewhere and in peace.",
			"chmod 0640 at most, owned by the broker's user."},
		{string(ruleDefaultUser), Error, "There is a user with the name or the password of an installation",
			"Those names and passwords are the first that are tried.",
			"Delete the user, or give it a random password."},
		{string(ruleMissingFile), Error, "A file that the configuration names is missing",
			"The broker does not start, or starts without what the file is for.",
			"Put the file there, or take the line out."},
		{string(ruleUnsafeName), Warning, "A user name means something to a broker",
			"+, # and / become wildcards or levels where the name stands in a topic; with VerneMQ a user called + has the topics of all others.",
			"Use letters, digits, - and _ only."},
		{string(ruleDefaultAllow), Error, "What no rule matches is allowed",
			"Every topic that nobody thought of is open.",
			"Deny by default, explicitly: the default of a broker changes between versions."},
		{string(ruleSubscribePlus), Warning, "A rule for subscriptions ends in +",
			"This broker compares the requested filter as if it were a topic, so x/+ admits a subscription to x/#.",
			"Name the last level."},
		{string(ruleCertUnreadable), Error, "A file has no certificate that can be read",
			"The broker does not start, or trusts nobody.",
			"Write the file again: certificates in PEM."},
		{string(ruleCRLForeign), Warning, "A CRL is not signed by a CA of the trust bundle",
			"It revokes nothing: the CA whose certificates are accepted has another key.",
			"Use the CRL of the CA that issues the devices' certificates."},
	}
}

// mosquittoRules are about Mosquitto and RabbitMQ.
func mosquittoRules() []Rule {
	return []Rule{
		{string(ruleACLMissing), Error, "The ACL file is missing",
			"Mosquitto 2.0 logs it and allows every topic to everybody, also after a reload.",
			"Put the file there. Replace it by rename only, never by deleting first."},
		{string(rulePerListener), Warning, "per_listener_settings is true",
			"Passwords, ACL and anonymous access then hold for one listener each; a listener without them is open or dead, and the option goes away in 3.0.",
			"Take it out and set these options once."},
		{string(rulePartial), Error, "A placeholder is part of a level",
			"Mosquitto 2.0 fills in dev-%u; 2.1 takes it for that very topic, VerneMQ and FlashMQ never match. Names can be made to run into the rest of the level.",
			"Make %u or %c a whole level: fleet/%u/up."},
		{string(ruleDeny), Warning, "An access list depends on deny",
			"A pattern deny does not override what a user is allowed, and other brokers read the line differently or not at all.",
			"Allow what is needed; all else is denied without saying."},
		{string(ruleBeforeUser), Warning, "Topic lines stand before the first user",
			"Mosquitto gives them to clients without a name only, and never to the users: with anonymous access off they do nothing. VerneMQ gives them to everybody.",
			"Use pattern lines for what everybody may, and user sections for the rest."},
		{string(ruleACLSyntax), Error, "An access list has a line that is none",
			"Mosquitto 2.0 drops all access rules at a reload, and everything is allowed; 2.1 exits.",
			"Mend the line: USER, TOPIC or PATTERN, words divided by spaces, # only as the first byte."},
		{string(rulePasswordLine), Warning, "A password file has a line that logs nobody in",
			"Mosquitto 2.0 drops the entry, 2.1 does not start, or exits at a reload.",
			"Mend the line: NAME:$7$ITERATIONS$SALT$HASH, each name once, a salt of 12 bytes."},
		{string(ruleIdentityNoCert), Warning, "The identity is taken from a certificate that is not required",
			"Mosquitto refuses every client of such a listener.",
			"Set require_certificate true."},
		{string(ruleCRLNoEffect), Warning, "A CRL is given to a listener that requires no certificate",
			"It is not looked at.",
			"Set require_certificate true, or take the CRL out."},
		{string(ruleNoTopicRow), Error, "A user has no topic permission",
			"RabbitMQ allows every topic to a user that has no row for the exchange.",
			"Give every user a topic_permissions row; ^$ denies."},
		{string(ruleUnanchored), Error, "A pattern of a permission is not anchored",
			"It matches anywhere: fleet.dev-1 also allows fleet.dev-10 and x.fleet.dev-1.y.",
			"Write ^...$ and escape the dots."},
		{string(ruleCRLSources), Error, "CRLs come from ssl_options.crl_sources",
			"It becomes a cache that knows http only: with crl_check peer every client is refused, with best_effort revoked ones are accepted.",
			"Use ssl_crl_hash_dir in advanced.config."},
		{string(ruleBestEffort), Error, "crl_check is best_effort, or off",
			"With best_effort an expired or missing CRL lets revoked certificates in.",
			"Set crl_check to peer."},
		{string(ruleGuestRemote), Error, "guest may log in from anywhere",
			"guest with the password guest is an administrator.",
			"Delete guest, and leave loopback_users alone."},
		{string(ruleClientIDPattern), Error, "A topic permission has the placeholder {client_id}",
			"Before 4.2.4 the value goes into the pattern as it is: a client called .* matches everything. The client chooses it.",
			"Write the name into the pattern, escaped."},
	}
}

// brokerRules are about one other broker each.
func brokerRules() []Rule {
	return []Rule{
		{string(ruleDefaultListener), Error, "A listener without TLS is on by default",
			"EMQX opens tcp 1883 and ws 8083 on all addresses unless told not to.",
			"listeners.tcp.default.enable = false, listeners.ws.default.enable = false."},
		{string(ruleSuperuser), Error, "A user is a superuser",
			"EMQX asks no access rule about it.",
			"Write false, and give it rules."},
		{string(ruleLiteralRule), Error, "An access list uses a word that VerneMQ does not know",
			"topic deny x and topic readwrite x allow the topics called \"deny x\" and \"readwrite x\".",
			"Use read or write, or no word for both; there is no deny."},
		{string(ruleLoaderCrash), Error, "A file has a line that stops VerneMQ from loading it",
			"The loader crashes: new entries are half there, and those that were revoked stay.",
			"Passwords: NAME:$6$SALT$HASH only, no comments, no $7$. Rules: user, topic, pattern only, no carriage returns."},
		{string(ruleNoRevocation), Warning, "A certificate cannot be revoked",
			"FlashMQ reads no CRL, and with client_verification_still_do_authn off it asks for nothing but the certificate.",
			"Set client_verification_still_do_authn true and give each device a password line: removing it revokes."},
		{string(ruleCutUser), Error, "A user name with a blank is cut",
			"FlashMQ splits at blanks: the rules of \"a b\" are given to \"a\".",
			"Use names without blanks."},
		{string(ruleEmptyUsers), Error, "The user table is empty",
			"NanoMQ then accepts any user name with any password.",
			"Keep at least one entry, with a random password that nobody has."},
		{string(ruleEmptyTopics), Error, "A rule has no list of topics",
			"NanoMQ crashes on an empty list, and takes a missing one, or a text, for all topics.",
			"topics is a list with at least one filter."},
		{string(ruleAnyUser), Error, "A rule allows, and names nobody",
			"NanoMQ gives a rule without username, clientid or ipaddr to everybody; a misspelt key is no key, and ipaddrs never match.",
			"Name the user."},
		{string(rulePlainStore), Note, "The broker stores passwords as they are",
			"NanoMQ knows no hashes: the file is worth as much as all devices.",
			"Mode 0600, random passwords that are used nowhere else, or HTTP authentication."},
		{string(ruleRefusedFile), Error, "The broker refuses the file, and keeps the old one",
			"The file RBAC extension takes no file without users, with a user without roles, with a name twice or a role that is not there: what was revoked in it is not.",
			"Mend the file; keep a locked user in it."},
		{string(ruleDeadHash), Warning, "A password hash has two parts",
			"The file is accepted, and the user never logs in.",
			"Write SALT:ITERATIONS:HASH."},
		{string(ruleNextExtension), Error, "Who is refused is handed on to the next extension",
			"With next-extension-instead-of-fail a client that the file does not let in is let in by whichever other extension does.",
			"Set next-extension-instead-of-fail to false."},
	}
}

// endpointRules are about what an endpoint was seen to do.
func endpointRules() []Rule {
	return []Rule{
		{string(rulePlainEndpoint), Error, "The endpoint answers MQTT without TLS",
			"Whoever is on the way reads user names, passwords and messages, and can change them.",
			"Serve TLS there, or close the port."},
		{string(ruleUntrusted), Error, "The server's certificate does not lead to a trusted root",
			"Devices refuse it, or do not check: then anybody can be the broker.",
			"Send the whole chain without the root, and give devices the right trust bundle."},
		{string(ruleWrongHost), Error, "The server's certificate is not for this name",
			"Devices that check refuse it.",
			"Put the name that devices use into the certificate as a subject alternative name."},
		{string(ruleAnonymousReads), Error, "A client without a name may subscribe to everything",
			"Everybody hears the whole fleet, or what the broker says about itself. (Mosquitto grants every subscription and filters what it delivers: there the access list decides.)",
			"Switch anonymous access off, and write access rules."},
	}
}
