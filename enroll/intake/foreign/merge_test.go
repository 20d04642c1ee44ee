package foreign

import (
	"errors"
	"slices"
	"testing"
	"testing/fstest"

	"github.com/imprint-iot/imprint/inventory"
)

// The broker knows rights and passwords, the authority who was revoked.
func TestMerge(t *testing.T) {
	broker := read(t, fstest.MapFS{
		"acl":    {Data: []byte("pattern write up/%u\nuser one\nuser two\nuser gone\ntopic read x/gone\n")},
		"passwd": {Data: []byte("one:" + hash7 + "\n")},
	}, Options{})
	index := fstest.MapFS{"index.txt": {Data: []byte(
		"V\t361121000000Z\t\t01\tunknown\t/CN=one\n" +
			"V\t361121000000Z\t\t02\tunknown\t/CN=two\n" +
			"R\t361121000000Z\t260102030405Z,keyCompromise\t03\tunknown\t/CN=gone\n" +
			"V\t361121000000Z\t\t04\tunknown\t/CN=only\n" +
			"V\t361121000000Z\t\t05\tunknown\t/CN=TWO\n")}}
	for _, profile := range []string{"", "default"} {
		for _, order := range []bool{true, false} {
			plans := []*Plan{broker, read(t, index, Options{Profile: profile})}
			if !order {
				slices.Reverse(plans)
			}
			p, err := Merge(plans[0], plans[1])
			if err != nil {
				t.Fatal(err)
			}
			checkPlan(t, p)
			one := device(t, p, "one")
			if one.Profile != "imported-1" || len(one.Verifiers) != 1 || len(one.Certificates) != 1 || len(one.Problems) > 0 {
				t.Errorf("order %v, profile %q: one: %+v", order, profile, one)
			}
			if serial, _ := one.Labels.Get("foreign-serial"); serial != "01" {
				t.Errorf("one: labels %v", one.Labels)
			}
			if gone := device(t, p, "gone"); len(gone.Problems) == 0 {
				t.Error("a revoked device would be taken over")
			}
			if only := device(t, p, "only"); only.Profile != profile || (len(only.Problems) == 0) != (profile != "") {
				t.Errorf("profile %q: only: %+v", profile, only)
			}
			if len(device(t, p, "two").Problems) == 0 || len(device(t, p, "TWO").Problems) == 0 {
				t.Error("two names of one id would be taken over")
			}
		}
	}
	if len(broker.Devices) != 3 || len(broker.Devices[0].Certificates) != 0 || slices.ContainsFunc(broker.Devices, func(d Device) bool { return len(d.Problems) > 0 }) {
		t.Error("Merge has changed a plan")
	}

	other := read(t, fstest.MapFS{"acl": {Data: []byte("user x\ntopic read z/x\n")}}, Options{})
	if _, err := Merge(broker, other); !errors.Is(err, inventory.ErrConflict) {
		t.Errorf("two profiles of one name: %v", err)
	}
}
