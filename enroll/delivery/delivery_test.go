package delivery

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/enroll/server/servertest"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/mqtt"
)

// Only what the broker itself says is a refusal: a broker that is not there has not
// obeyed.
func TestJudge(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		want verdict
	}{
		{"CONNACK", fmt.Errorf("x: %w", &mqtt.RefusedError{Code: 5}), refused},
		{"alert", &net.OpError{Op: "remote error", Err: tls.AlertError(44)}, refused},
		{"hung up", fmt.Errorf("waiting: %w", io.EOF), refused},
		{"reset", &net.OpError{Op: "write", Err: syscall.ECONNRESET}, refused},
		{"nobody there", &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, unclear},
		{"no answer", &net.OpError{Op: "read", Err: timeoutError{}}, unclear},
		{"another server", &tls.CertificateVerificationError{Err: errors.New("unknown authority")}, unclear},
		{"another protocol", mqtt.ErrProtocol, unclear},
	} {
		if got := judge(tt.err); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

type timeoutError struct{}

func (timeoutError) Error() string { return "i/o timeout" }
func (timeoutError) Timeout() bool { return true }

// A receipt is in the audit log as it was made, as far as the log is exact.
func TestReceiptInLog(t *testing.T) {
	now := time.Date(2026, 11, 21, 1, 2, 3, 0, time.UTC)
	want := Receipt{
		Node: "mqtt-1", Target: "mosquitto", Revision: 42, Began: now, Took: 182 * time.Millisecond, Count: 2, Ended: []string{"dev-1", "dev-2"},
		Steps: []Step{{Name: "crl", At: 80 * time.Millisecond, Note: "device-1 number 3 with 5 entries"}, {Name: "reload", At: 89 * time.Millisecond}},
	}
	e := want.event("test", now)
	if err := e.Validate(); err != nil {
		t.Fatal(err)
	}
	got, ok := ReadReceipt(&e)
	if !ok || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("read %+v\nwant %+v", got, want)
	}
	for _, e := range []inventory.Event{{Action: "device.revoke"}, {Action: receiptAction}, {Action: receiptAction, Objects: []inventory.Object{{Kind: "node", ID: "x", Note: "y"}}}} {
		if r, ok := ReadReceipt(&e); ok {
			t.Errorf("%+v is read as %+v", e, r)
		}
	}
}

func TestOneLine(t *testing.T) {
	if got := oneLine(errors.New("a\nb\t c")); got != "a b c" {
		t.Errorf("%q", got)
	}
	if got := oneLine(errors.New(string(slices.Repeat([]byte("é"), 300)))); len(got) > 250 {
		t.Errorf("%d bytes", len(got))
	}
}

// An export has the canary among the devices, in its place, with the rights of a profile
// and the password that was sent last; no other canary, and no device that was ended.
func TestViewWithCanary(t *testing.T) {
	f := servertest.Start(t, servertest.Options{})
	ctx := t.Context()
	for _, id := range []string{"a-1", "dev-1", "dev-2"} {
		token := f.Token(inventory.Token{Devices: []inventory.DeviceID{inventory.DeviceID(id)}, Profile: "default"})
		body := fmt.Appendf(nil, `{"device":%q,"csr":%q,"password":true}`, id, servertest.CSR(t, id, catest.Key(t, ca.P256)))
		if a := f.Do(servertest.Call{Path: api.PathEnroll, Token: token, Body: body}); a.Status != 200 {
			t.Fatalf("%d %s", a.Status, a.Body)
		}
	}
	if _, err := f.Revoke(ctx, "test", "", inventory.Unspecified, "dev-2"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.SendCanary(ctx, "test", "other"); err != nil {
		t.Fatal(err)
	}
	pair, err := f.SendCanary(ctx, "test", "node")
	if err != nil {
		t.Fatal(err)
	}
	err = f.Store.Read(ctx, func(in inventory.Reader) error {
		v, err := NewView(in, ViewConfig{Now: time.Now(), Canary: pair.Device})
		if err != nil {
			return err
		}
		for range 2 { // a view can be ranged over again
			var ids []inventory.DeviceID
			for e, err := range v.Entries() {
				if err != nil {
					return err
				}
				ids = append(ids, e.ID)
				if e.ID == pair.Device {
					checkCanary(t, e)
				}
			}
			if want := []inventory.DeviceID{"a-1", pair.Device, "dev-1"}; !slices.Equal(ids, want) {
				t.Errorf("entries %v, want %v", ids, want)
			}
		}
		endings, _, err := enroll.Endings(in, 0, 0)
		if err != nil || len(endings) != 1 || endings[0].Device != "dev-2" || !endings[0].Gone {
			t.Errorf("endings %+v, %v", endings, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func checkCanary(t *testing.T, e templates.Entry) {
	t.Helper()
	if !e.Certificate || len(e.Verifiers) == 0 || len(e.Grants) == 0 {
		t.Errorf("the canary is %+v", e)
	}
	for _, g := range e.Grants {
		if string(g.Filter) == "#" {
			t.Errorf("the canary may %s everything", g.Action)
		}
	}
}
