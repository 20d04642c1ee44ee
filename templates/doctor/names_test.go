package doctor_test

import (
	"testing"

	"github.com/imprint-iot/imprint/templates/doctor"
)

func TestReaders(t *testing.T) {
	for _, tt := range []struct {
		name string
		read func(string) bool
		yes  []string
		no   []string
	}{
		{"loopback", doctor.Loopback,
			[]string{"127.0.0.1", "127.0.0.1:1883", "127.8.8.8:1", "localhost", "LOCALHOST:1883", "::1", "[::1]:1883", `"127.0.0.1:1883"`, "nmq-tcp://127.0.0.1:1883", "::ffff:127.0.0.1"},
			[]string{"", "1883", ":1883", "0.0.0.0:1883", "::", "[::]:1883", "*", "broker.example:1883", "10.0.0.1", "127.0.0.1.example", "none"}},
		{"old TLS", doctor.OldTLS,
			[]string{"tlsv1", "tlsv1.1", "TLSv1", "TLSv1.1", "1.0", "1.1", "tlsv1_1", `"tlsv1.1"`, "sslv3", "TLS1.0"},
			[]string{"", "tlsv1.2", "tlsv1.3", "TLSv1.2", "1.2", "1.3", "tlsv1_2"}},
		{"everything", doctor.Everything,
			[]string{"#", "+", "+/#", "/#", "+/+/+", "$CONTROL/#", "$CONTROL/dynamic-security/v1"},
			[]string{"", "a/#", "+/a", "$SYS/#", "fleet/+/#", "/a/#", "a"}},
	} {
		for _, s := range tt.yes {
			if !tt.read(s) {
				t.Errorf("%s: %q is not", tt.name, s)
			}
		}
		for _, s := range tt.no {
			if tt.read(s) {
				t.Errorf("%s: %q is", tt.name, s)
			}
		}
	}
}
