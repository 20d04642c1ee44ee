package foreign

import (
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
)

// fuzz reads whatever it is given as one kind, and holds the plan to its promises.
func fuzz(f *testing.F, kind, name string, seeds ...string) {
	f.Helper()
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		src := fstest.MapFS{name: {Data: data}}
		for _, o := range []Options{{Now: moment()}, {Now: moment(), Profile: "default", AcceptShared: true, Rename: true, Scheme: inventory.SHA256Suffix}} {
			p, err := Read(t.Context(), src, kind, o)
			if err != nil {
				return
			}
			checkPlan(t, p)
		}
	})
}

func seed(f *testing.F, name string) string {
	f.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		f.Fatal(err)
	}
	return string(b)
}

func FuzzPasswords(f *testing.F) {
	fuzz(f, Mosquitto, "passwd", seed(f, "mosquitto/passwd"), "a:$6$x\n", "\x00")
}

func FuzzACL(f *testing.F) {
	fuzz(f, Mosquitto, "acl", seed(f, "mosquitto/acl"), "user a\ntopic a/{id}\n", "pattern %u/%c")
}

func FuzzDynsec(f *testing.F) {
	fuzz(f, Dynsec, "d.json", seed(f, "dynsec/dynamic-security.json"))
}

func FuzzRabbitMQ(f *testing.F) {
	fuzz(f, RabbitMQ, "d.json", seed(f, "rabbitmq/definitions.json"))
}

func FuzzEMQX(f *testing.F) {
	fuzz(f, EMQX, "users.csv", seed(f, "emqx/users.csv"), `[{"user_id":"a","password_hash":"b","is_superuser":1}]`)
}

func FuzzStep(f *testing.F) { fuzz(f, Step, "ca.json", seed(f, "step/config/ca.json")) }

func FuzzIndex(f *testing.F) {
	fuzz(f, OpenSSL, "index.txt", "V\t361121000000Z\t\t1000\tunknown\t/CN=dev-1\n", "R\t361121000000Z\t260102030405Z,keyCompromise\t0A\tunknown\t/C=DE/CN=dev-1\\/x/O=x\n")
}

func FuzzPEM(f *testing.F) {
	fuzz(f, PEM, "x.pem", "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n")
}

func FuzzCSV(f *testing.F) { fuzz(f, CSV, "d.csv", seed(f, "csv/devices.csv")) }

func FuzzExpression(f *testing.F) {
	for _, s := range []string{`^fleet\.u1\.up(\..*)?$`, `^(a|b\.[^.]*)$`, `^a\..*$`, `a|b`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		start := time.Now()
		if strings.ContainsAny(text, "\n") {
			return // where $ means one thing to PCRE and another here
		}
		checkExpression(t, text)
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("took %s", took)
		}
	})
}

func FuzzTemplate(f *testing.F) {
	f.Add("a/dev-1/b", "dev-1", "north")
	f.Fuzz(func(t *testing.T, filter, name, group string) {
		parsed, err := topic.ParseFilter(filter)
		if err != nil {
			return
		}
		if _, err := inventory.ParseDeviceID(name); err != nil {
			return
		}
		if g, err := inventory.ParseGroup(group); err != nil || g != group {
			return
		}
		b := newBuilder(t.Context(), Options{})
		text, ok := b.template(&user{name: name, group: group}, topic.Grant{Action: topic.Publish, Filter: parsed})
		if !ok {
			return
		}
		rule := topic.Policy{Rules: []topic.Rule{{Action: topic.Publish, Filter: text}}}
		grants, err := rule.Resolve(topic.Subject{ID: name, Group: group})
		if err != nil || grants[0].Filter != parsed {
			t.Errorf("%q of %q became %q, which is %v, %v", filter, name, text, grants, err)
		}
	})
}
