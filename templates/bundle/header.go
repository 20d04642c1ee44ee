package bundle

import (
	"bytes"
	"encoding/pem"
	"fmt"
)

// header is identity.h, for C: every item once as an array of DER octets with its
// length, and once as PEM text that ends in a NUL, which mbedtls_x509_crt_parse
// wants counted in the length.
func (m Material) header() []byte {
	var b bytes.Buffer
	if m.secrecy() == secretMode {
		b.WriteString("/* This file holds secrets. */\n")
	}
	b.WriteString("/* Identity of one device, made by imprint. */\n#ifndef IMPRINT_IDENTITY_H\n#define IMPRINT_IDENTITY_H\n\n")
	text(&b, "imprint_id", m.ID)
	text(&b, "imprint_host", m.Host)
	_, _ = fmt.Fprintf(&b, "#define IMPRINT_PORT %d\n#define IMPRINT_PASSWORD_PORT %d\n\n", m.Port, m.PasswordPort)
	if len(m.Password) > 0 {
		text(&b, "imprint_password", string(m.Password))
	}
	octets(&b, "imprint_cert_der", m.Chain[0])
	octets(&b, "imprint_trust_der", derOf(m.TrustBundle))
	octets(&b, "imprint_chain_pem", append(certificates(m.Chain), 0))
	octets(&b, "imprint_trust_pem", append(bytes.Clone(m.TrustBundle), 0))
	if len(m.KeyPKCS8) > 0 {
		octets(&b, "imprint_key_der", m.KeyPKCS8)
		octets(&b, "imprint_key_pem", append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: m.KeyPKCS8}), 0))
	}
	b.WriteString("#endif\n")
	return b.Bytes()
}

// text writes a string constant. Whatever is not plain is written in octal, which
// ends after three digits, so that no character of a name can end the string or
// join an escape.
func text(b *bytes.Buffer, name, value string) {
	_, _ = fmt.Fprintf(b, "static const char %s[] = \"", name)
	for i := range len(value) {
		switch c := value[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.', c == '/', c == ' ':
			b.WriteByte(c)
		default:
			_, _ = fmt.Fprintf(b, "\\%03o", c)
		}
	}
	b.WriteString("\";\n")
}

// octets writes an array and its length.
func octets(b *bytes.Buffer, name string, data []byte) {
	_, _ = fmt.Fprintf(b, "static const unsigned char %s[] = {", name)
	for i, c := range data {
		if i%16 == 0 {
			b.WriteString("\n\t")
		}
		_, _ = fmt.Fprintf(b, "0x%02x,", c)
	}
	_, _ = fmt.Fprintf(b, "\n};\nstatic const unsigned int %s_len = %d;\n\n", name, len(data))
}
