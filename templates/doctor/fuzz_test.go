package doctor_test

import (
	"bytes"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/imprint-iot/imprint/templates/doctor"
)

// audit runs an audit of any text, and checks what holds of every report.
func audit(t *testing.T, kind string, files map[string][]byte) {
	t.Helper()
	src := fstest.MapFS{}
	for name, text := range files {
		src[name] = &fstest.MapFile{Data: text}
	}
	r, err := doctor.Files(src, "conf", doctor.FileOptions{Kind: kind, Now: today})
	if err != nil {
		t.Fatal(err)
	}
	rules := map[string]bool{}
	for _, rule := range doctor.Rules() {
		rules[rule.ID] = true
	}
	for _, f := range r.Findings {
		lines := bytes.Count(files[f.File], []byte("\n")) + 1
		if !rules[f.Rule] || f.Severity == "" || f.Line < 0 || f.Line > lines {
			t.Errorf("finding %+v in a file of %d lines", f, lines)
		}
		if len(f.Detail) > 4096 {
			t.Errorf("detail of %d bytes", len(f.Detail))
		}
	}
	if _, err := r.SARIF(""); err != nil {
		t.Error(err)
	}
}

// seed gives the files of the cases of a kind to add: the configuration, and the
// others in order of their names.
func seed(f *testing.F, kind string, add func(conf []byte, others [][]byte)) {
	f.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", kind+"-*.txtar"))
	if err != nil || len(files) == 0 {
		f.Fatalf("%d cases of %s, %v", len(files), kind, err)
	}
	for _, file := range files {
		ar, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		slices.SortStableFunc(ar.Files[1:], func(a, b txtar.File) int { return strings.Compare(a.Name, b.Name) })
		others := [][]byte{nil, nil}
		for i, o := range ar.Files[1:] {
			if i < len(others) {
				others[i] = o.Data
			}
		}
		add(ar.Files[0].Data, others)
	}
}

// fuzzWith fuzzes a configuration with two files that it names a and b.
func fuzzWith(f *testing.F, kind, names string) {
	seed(f, kind, func(conf []byte, others [][]byte) { f.Add(conf, others[0], others[1]) })
	f.Fuzz(func(t *testing.T, conf, a, b []byte) {
		audit(t, kind, map[string][]byte{"conf": append([]byte(names), conf...), "a": a, "b": b})
	})
}

func FuzzMosquitto(f *testing.F) {
	fuzzWith(f, doctor.KindMosquitto, "acl_file a\npassword_file b\n")
}

func FuzzDynsec(f *testing.F) {
	fuzzWith(f, doctor.KindMosquitto, "plugin mosquitto_dynamic_security.so\nplugin_opt_config_file a\n")
}

func FuzzPEM(f *testing.F) {
	p := newPKI(f)
	for _, name := range []string{"ca.pem", "crl.pem", "server-weak.pem"} {
		f.Add(p.list[name].Data, p.list["crl-expired.pem"].Data)
	}
	f.Fuzz(func(t *testing.T, ca, crl []byte) {
		audit(t, doctor.KindMosquitto, map[string][]byte{"conf": []byte("listener 8883\ncertfile a\ncafile a\ncrlfile b\n"), "a": ca, "b": crl})
	})
}

func FuzzRabbitMQ(f *testing.F) {
	fuzzWith(f, doctor.KindRabbitMQ, "load_definitions = a\n")
}

func FuzzRabbitMQAdvanced(f *testing.F) {
	f.Add([]byte(`[{rabbit, [{ssl_options, [{verify, verify_peer}, {versions, ['tlsv1.1']}, {crl_check, peer}, {dir, "x"}]}]}]. % "`))
	f.Fuzz(func(t *testing.T, text []byte) {
		audit(t, doctor.KindRabbitMQ, map[string][]byte{"conf": []byte("mqtt.allow_anonymous = false\n"), "advanced.config": text})
	})
}

func FuzzEMQX(f *testing.F) { fuzzWith(f, doctor.KindEMQX, "") }

func FuzzEMQXFiles(f *testing.F) {
	const conf = `authentication = [{ bootstrap_file = "a.csv" }, { bootstrap_file = "a.json" }]
authorization.sources = [{ type = file, path = b }]
`
	seed(f, doctor.KindEMQX, func(_ []byte, others [][]byte) { f.Add(others[1], others[0]) })
	f.Fuzz(func(t *testing.T, users, acl []byte) {
		audit(t, doctor.KindEMQX, map[string][]byte{"conf": []byte(conf), "a.csv": users, "a.json": users, "b": acl})
	})
}

func FuzzVerneMQ(f *testing.F) {
	fuzzWith(f, doctor.KindVerneMQ, "vmq_acl.acl_file = a\nvmq_passwd.password_file = b\n")
}

func FuzzFlashMQ(f *testing.F) {
	fuzzWith(f, doctor.KindFlashMQ, "mosquitto_acl_file a\nmosquitto_password_file b\n")
}

func FuzzNanoMQ(f *testing.F) {
	fuzzWith(f, doctor.KindNanoMQ, "auth { acl = { include a }, password { include b } }\n")
}

func FuzzNATS(f *testing.F) { fuzzWith(f, doctor.KindNATS, "") }

func FuzzHiveMQ(f *testing.F) {
	seed(f, doctor.KindHiveMQ, func(conf []byte, others [][]byte) { f.Add(conf, others[0], others[1]) })
	f.Fuzz(func(t *testing.T, conf, users, ext []byte) {
		audit(t, doctor.KindHiveMQ, map[string][]byte{"conf": conf, "credentials.xml": users, "extension-config.xml": ext})
	})
}

// FuzzDetect gives any text without saying what it is.
func FuzzDetect(f *testing.F) {
	for _, c := range []string{"listener 1883\n", "mqtt.listeners.tcp = none", "<hivemq/>", "jetstream {}", "listeners.tcp {", `{"topic_permissions":[]}`} {
		f.Add([]byte(c))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		_, _ = doctor.Files(fstest.MapFS{"x": {Data: text}}, "x", doctor.FileOptions{}) // that it ends is enough
	})
}

func FuzzReadPacket(f *testing.F) {
	f.Add([]byte{0x90, 3, 0, 1, 0})
	f.Add([]byte{0x30, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, text []byte) {
		if kind, body, err := doctor.ReadPacket(bytes.NewReader(text)); err == nil && (kind != text[0] || len(body) > 16) {
			t.Errorf("packet of type %d with %d bytes", kind, len(body))
		}
	})
}
