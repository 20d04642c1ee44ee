//go:build pkcs11

package main

// hasPKCS11 says whether this build can use keys on PKCS #11 tokens.
const hasPKCS11 = true
