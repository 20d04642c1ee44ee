package foreign

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory"
)

var update = flag.Bool("update", false, "write the golden reports anew")

// moment is when all tests happen.
func moment() time.Time { return time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC) }

// report is a plan as text, without hashes.
func report(p *Plan) string {
	var b strings.Builder
	for _, d := range p.Devices {
		fmt.Fprintf(&b, "device %q id %q suggest %q profile %q group %q serial %q", d.Name, d.ID, d.Suggest, d.Profile, d.Group, d.HardwareSerial)
		for _, l := range d.Labels {
			fmt.Fprintf(&b, " %s=%q", l.Key, l.Value)
		}
		for _, v := range d.Verifiers {
			fmt.Fprintf(&b, " %s/%d/%d/%d", v.Scheme, v.Iterations, len(v.Salt), len(v.Hash))
		}
		for _, c := range d.Certificates {
			fmt.Fprintf(&b, " certificate %s revoked %v %q", c.Serial, !c.RevokedAt.IsZero(), c.Reason)
		}
		for _, why := range d.Problems {
			fmt.Fprintf(&b, "\n  problem: %s", why)
		}
		b.WriteByte('\n')
	}
	for _, pr := range p.Profiles {
		fmt.Fprintf(&b, "profile %s\n", pr.Name)
		for _, r := range pr.Policy.Rules {
			fmt.Fprintf(&b, "  %s shared %v\n", r, r.Shared)
		}
	}
	for _, f := range p.Findings {
		fmt.Fprintln(&b, f)
	}
	return b.String()
}

func TestGolden(t *testing.T) {
	for _, tt := range []struct {
		dir, kind string
		o         Options
	}{
		{"mosquitto", Mosquitto, Options{}},
		{"dynsec", Dynsec, Options{AcceptShared: true}},
		{"rabbitmq", RabbitMQ, Options{}},
		{"emqx", EMQX, Options{Profile: "default", Scheme: inventory.SHA256Suffix}},
		{"csv", CSV, Options{Profile: "default"}},
		{"step", Step, Options{}},
	} {
		t.Run(tt.dir, func(t *testing.T) {
			root, err := os.OpenRoot(filepath.Join("testdata", tt.dir))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = root.Close() }()
			kinds, err := Detect(root.FS())
			if err != nil {
				t.Fatal(err)
			}
			if len(kinds) != 1 || kinds[0] != tt.kind {
				t.Errorf("Detect = %v, want %s", kinds, tt.kind)
			}
			tt.o.Now = moment()
			p, err := Read(t.Context(), root.FS(), "", tt.o)
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", tt.dir+".want")
			got := report(p)
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("report:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}
