package intake_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/intake"
	"github.com/imprint-iot/imprint/inventory"
)

func read(text string) (rows []enroll.Row, err error) {
	options := intake.Options{Profile: "default", ReadCSR: func(name string) ([]byte, error) {
		if name == "missing" {
			return nil, errors.New("no such file")
		}
		return []byte("request " + name), nil
	}}
	for row, err := range intake.Devices(strings.NewReader(text), options) {
		if err != nil {
			return rows, err
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func TestDevices(t *testing.T) {
	rows, err := read("\ufeffserial, id ,csr,label.site,profile,group,label.x-y\r\n" +
		"SN 1,dev-1,a.csr,\"Bonn,\r\nleft\",,,\r\n" +
		"\r\n" +
		"\"S\"\"2\",Dev-2,,Köln,sensor,hall-1,*\n")
	if err != nil || len(rows) != 2 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	r := rows[0]
	site, _ := r.Device.Labels.Get("site")
	if r.Line != 2 || r.Device.ID != "dev-1" || r.Device.HardwareSerial != "SN 1" || string(r.CSR) != "request a.csr" || r.Device.Profile != "default" || site != "Bonn,\nleft" {
		t.Errorf("the first row: %+v, site %q", r, site)
	}
	r = rows[1]
	site, _ = r.Device.Labels.Get("site")
	other, _ := r.Device.Labels.Get("x-y")
	if r.Line != 5 || r.Device.ID != "Dev-2" || r.Device.HardwareSerial != `S"2` || r.CSR != nil || r.Device.Profile != "sensor" || r.Device.Group != "hall-1" || site != "Köln" || other != "*" {
		t.Errorf("the second row: %+v", r)
	}
}

func TestDevicesRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"empty":               "",
		"no id":               "serial\n1\n",
		"unknown column":      "id,colour\n",
		"repeated column":     "id,serial,serial\n",
		"label without name":  "id,label.\n",
		"label with a space":  "id,label.a b\n",
		"semicolons":          "id;serial\n",
		"UTF-16, little":      "\xff\xfei\x00d\x00",
		"UTF-16, big":         "\xfe\xff\x00i\x00d",
		"UTF-16, no mark":     "i\x00d\x00",
		"Latin-1":             "id,label.a\ndev-1,K\xf6ln\n",
		"Latin-1 at the end":  "id,label.a\ndev-1,K\xf6",
		"cell of a megabyte":  "id\n" + strings.Repeat("a", 1<<20) + "\n",
		"quote left open":     "id\n\"" + strings.Repeat("a\n", 1<<19),
		"header of megabytes": strings.Repeat("label.a,", 1<<18) + "\n",
	} {
		rows, err := read(text)
		bad, ok := errors.AsType[*intake.ImportError](err)
		if !ok || bad.Reason == "" || len(err.Error()) > 300 {
			t.Errorf("%s: %d rows, %v, want a short *ImportError", name, len(rows), err)
		}
	}
}

// TestBadRows: a row that cannot be read is named by its line, and the others are
// read.
func TestBadRows(t *testing.T) {
	rows, err := read("id,serial,csr\ngood-1,,\nshort\na,b,c,d\nbad:id,,\nx\"y,,\ngood-2,,missing\ngood-3,,\n")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range rows {
		got = append(got, fmt.Sprintf("%d:%v", r.Line, r.Err == nil))
	}
	if want := "2:true 3:false 4:false 5:false 6:false 7:false 8:true"; strings.Join(got, " ") != want {
		t.Errorf("%v, want %s", got, want)
	}
}

func FuzzDevices(f *testing.F) {
	f.Add("id,serial,label.a\ndev-1,\"S\"\"1\",x\n")
	f.Add("\ufeffid\r\n\"a\r\nb\"\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		rows, err := read(text)
		if _, ok := errors.AsType[*intake.ImportError](err); err != nil && !ok {
			t.Fatalf("%T: %v", err, err)
		}
		last := 0
		for _, r := range rows {
			if r.Line <= last {
				t.Errorf("line %d after line %d", r.Line, last)
			}
			last = r.Line
			if r.Err == nil {
				if _, err := inventory.ParseDeviceID(string(r.Device.ID)); err != nil {
					t.Errorf("line %d: %v", r.Line, err)
				}
			}
		}
	})
}
