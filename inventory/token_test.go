package inventory_test

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory"
)

var tokenDay = time.Unix(1_800_000_000, 0).UTC()

// token has every field set.
func token() inventory.Token {
	return inventory.Token{
		Hash: inventory.Hash{0x01, 0xab, 31: 9}, Role: inventory.StationRole, Name: `line "ü"`, Limit: 3, Uses: 2,
		Devices: []inventory.DeviceID{"Dev-1", "x-2"}, Prefix: "Dev-", Profile: "sensor", Group: "hall-1", Station: "line-1",
		Networks:  []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("0.0.0.0/0")},
		PerMinute: 7, Approve: true, Replace: true,
		NotBefore: tokenDay, Expires: tokenDay.Add(time.Hour), Created: tokenDay, CreatedBy: "op", RevokedAt: tokenDay.Add(time.Minute), Revision: 12,
	}
}

func approval() inventory.Approval {
	return inventory.Approval{
		Key: inventory.SPKI{1}, Device: "Dev-1", State: inventory.ApprovalDenied, Asked: "token 01ab", Created: tokenDay, Decided: tokenDay.Add(time.Minute), Revision: 3,
	}
}

func TestTokensReadBack(t *testing.T) {
	x, a := token(), approval()
	b, err := x.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := inventory.DecodeToken(b); err != nil || !reflect.DeepEqual(back, x) {
		t.Errorf("token: %+v, %v", back, err)
	}
	short(t, "token", b, func(b []byte) error { _, err := inventory.DecodeToken(b); return err })
	if b, err = a.AppendBinary(nil); err != nil {
		t.Fatal(err)
	}
	if back, err := inventory.DecodeApproval(b); err != nil || back != a {
		t.Errorf("approval: %+v, %v", back, err)
	}
	short(t, "approval", b, func(b []byte) error { _, err := inventory.DecodeApproval(b); return err })
	x.Expires = x.Expires.Add(time.Millisecond)
	if _, err := x.AppendBinary(nil); err == nil {
		t.Error("a time that is not in whole seconds is stored")
	}
}

// short checks that every shorter form of b is refused, a longer one, and one of a
// newer version.
func short(t *testing.T, what string, b []byte, decode func([]byte) error) {
	t.Helper()
	for i := range b {
		if err := decode(b[:i]); err == nil {
			t.Errorf("%s of %d of %d octets is read", what, i, len(b))
		}
	}
	if err := decode(append(b[:len(b):len(b)], 0)); !errors.Is(err, inventory.ErrCorrupt) {
		t.Errorf("%s with an octet more: %v", what, err)
	}
	newer := append([]byte(nil), b...)
	newer[0]++
	if err := decode(newer); !errors.Is(err, inventory.ErrVersion) {
		t.Errorf("%s of a newer version: %v", what, err)
	}
}

func TestTokenValidate(t *testing.T) {
	good := token()
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*inventory.Token){
		"no hash":            func(x *inventory.Token) { x.Hash = inventory.Hash{} },
		"no role":            func(x *inventory.Token) { x.Role = 0 },
		"unknown role":       func(x *inventory.Token) { x.Role = inventory.AdminRole + 1 },
		"no limit":           func(x *inventory.Token) { x.Limit, x.Uses = 0, 0 },
		"limit of an admin":  func(x *inventory.Token) { x.Role = inventory.AdminRole },
		"used too often":     func(x *inventory.Token) { x.Uses = 4 },
		"no end":             func(x *inventory.Token) { x.Expires = time.Time{} },
		"ends at once":       func(x *inventory.Token) { x.Expires = x.NotBefore },
		"too many devices":   func(x *inventory.Token) { x.Devices = make([]inventory.DeviceID, 1001) },
		"too many networks":  func(x *inventory.Token) { x.Networks = make([]netip.Prefix, 33) },
		"no network":         func(x *inventory.Token) { x.Networks = []netip.Prefix{{}} },
		"name of two lines":  func(x *inventory.Token) { x.Name = "a\nb" },
		"maker of two lines": func(x *inventory.Token) { x.CreatedBy = "a\nb" },
		"prefix":             func(x *inventory.Token) { x.Prefix = "a/" },
		"profile":            func(x *inventory.Token) { x.Profile = "a b" },
		"group":              func(x *inventory.Token) { x.Group = "a b" },
		"station":            func(x *inventory.Token) { x.Station = "a/b" },
		"device":             func(x *inventory.Token) { x.Devices = []inventory.DeviceID{"a/b"} },
	} {
		x := token()
		change(&x)
		if _, ok := errors.AsType[*inventory.InvalidError](x.Validate()); !ok {
			t.Errorf("%s: %v, want an *InvalidError", name, x.Validate())
		}
	}
	for name, change := range map[string]func(*inventory.Approval){
		"no key":          func(a *inventory.Approval) { a.Key = inventory.SPKI{} },
		"no device":       func(a *inventory.Approval) { a.Device = "" },
		"no state":        func(a *inventory.Approval) { a.State = 0 },
		"pending, a time": func(a *inventory.Approval) { a.State = inventory.ApprovalPending },
		"denied, no time": func(a *inventory.Approval) { a.Decided = time.Time{} },
		"two lines":       func(a *inventory.Approval) { a.Asked = "a\nb" },
	} {
		a := approval()
		change(&a)
		if _, ok := errors.AsType[*inventory.InvalidError](a.Validate()); !ok {
			t.Errorf("approval, %s: %v, want an *InvalidError", name, a.Validate())
		}
	}
}

func TestTokenCovers(t *testing.T) {
	for _, tt := range []struct {
		prefix  string
		devices []inventory.DeviceID
		id      inventory.DeviceID
		want    bool
	}{
		{"", nil, "anything", true},
		{"dev-", nil, "DEV-1", true},
		{"Dev-", nil, "dev-1", true},
		{"dev-", nil, "device", false},
		{"dev-", nil, "x-dev-1", false},
		{"", []inventory.DeviceID{"a", "B"}, "b", true},
		{"", []inventory.DeviceID{"a", "B"}, "bb", false},
		{"a", []inventory.DeviceID{"a", "B"}, "b", false},
	} {
		x := inventory.Token{Prefix: tt.prefix, Devices: tt.devices}
		if got := x.Covers(tt.id); got != tt.want {
			t.Errorf("prefix %q, devices %v, %s: %t", tt.prefix, tt.devices, tt.id, got)
		}
	}
}

func TestParseTokenID(t *testing.T) {
	x := token()
	if id, err := inventory.ParseTokenID(string(x.ID())); err != nil || id != x.ID() || id != "01ab000000000000" {
		t.Errorf("%q, %v", id, err)
	}
	for _, text := range []string{"", "01ab", "01AB000000000000", "01ab00000000000g", "01ab0000000000000", strings.Repeat("0", 64)} {
		if id, err := inventory.ParseTokenID(text); err == nil {
			t.Errorf("%q is read as %q", text, id)
		}
	}
}

// Only its revocation can be changed of a token, once, and by who knows its last use.
func TestCheckToken(t *testing.T) {
	live := token()
	live.RevokedAt = time.Time{}
	revoked := token()
	for _, tt := range []struct {
		name       string
		have, next inventory.Token
		want       inventory.Conflict // 0 is none
	}{
		{"the same", live, live, 0},
		{"revoked", live, revoked, 0},
		{"revoked as before", revoked, revoked, 0},
		{"taken back", revoked, live, inventory.BadTransition},
		{"revoked at another time", revoked, with(revoked, func(x *inventory.Token) { x.RevokedAt = tokenDay }), inventory.BadTransition},
		{"used less", live, with(live, func(x *inventory.Token) { x.Uses-- }), inventory.BadTransition},
		{"wider", live, with(live, func(x *inventory.Token) { x.Networks = x.Networks[:2] }), inventory.BadTransition},
		{"older", live, with(revoked, func(x *inventory.Token) { x.Revision-- }), inventory.Stale},
	} {
		err := inventory.CheckToken(&tt.have, &tt.next)
		c, ok := errors.AsType[*inventory.ConflictError](err)
		if ok != (tt.want != 0) || ok && c.Why != tt.want || !ok && err != nil {
			t.Errorf("%s: %v, want conflict %d", tt.name, err, tt.want)
		}
	}
}

func with(x inventory.Token, change func(*inventory.Token)) inventory.Token {
	change(&x)
	return x
}
