package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/templates/mosquitto/mosquittotest"
)

// smallFleet is a fleet of n devices, dev-0 and on, with a Mosquitto.
func smallFleet(t *testing.T, n int) (*running, *liveBroker, *mosquittotest.Broker) {
	t.Helper()
	r := newFleet(t)
	list := "id,group\n"
	for i := range n {
		list += fmt.Sprintf("dev-%d,hall-%d\n", i, i%2)
	}
	if err := os.WriteFile(filepath.Join(r.dir, "devices.csv"), []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	r.imprint("bootstrap", "devices.csv", "--out", "bundles")
	b, broker := runsMosquitto(r, "mq")
	r.imprint("broker", "sync", "mq")
	return r, b, broker
}

func (r *running) pending() []pendingView {
	r.t.Helper()
	var list []pendingView
	if err := json.Unmarshal([]byte(r.imprint("revocations", "pending", "--output", "json")), &list); err != nil {
		r.t.Fatal(err)
	}
	return list
}

func (r *running) stateOf(id string) string {
	r.t.Helper()
	var v struct{ State string }
	if err := json.Unmarshal([]byte(r.imprint("device", "show", id, "--output", "json")), &v); err != nil {
		r.t.Fatal(err)
	}
	return v.State
}

// imprint is killed at moments that are spread over a whole revocation. Whatever was
// acknowledged or recorded is in force once somebody looks at it again, and what was not
// is as before.
func TestRevocationKilled(t *testing.T) {
	const kills = 16
	r, b, _ := smallFleet(t, kills+1)
	done := 0
	for i := range kills {
		id := fmt.Sprintf("dev-%d", i)
		d := newRoller(r, id)
		if err := d.connects(b); err != nil {
			t.Fatalf("%s before: %v", id, err)
		}
		cmd := r.command("device", "revoke", id)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i*i) * 3 * time.Millisecond) // a revocation takes about 200 ms, and longer on a busy machine
		_ = cmd.Process.Signal(syscall.SIGKILL)
		acknowledged := cmd.Wait() == nil
		recorded := r.stateOf(id) == "revoked"
		if acknowledged && !recorded {
			t.Fatalf("kill %d: %s was said to be revoked and is not", i, id)
		}
		r.imprint("broker", "sync")
		if list := r.pending(); len(list) != 0 {
			t.Errorf("kill %d: pending after a sync: %+v", i, list)
		}
		if err := d.connects(b); (err == nil) == recorded {
			t.Errorf("kill %d: %s is revoked: %t, and connecting says %v", i, id, recorded, err)
		}
		if recorded {
			done++
		}
	}
	if done == 0 || done == kills {
		t.Errorf("%d of %d revocations were recorded before the kill: the moments are not spread over it", done, kills)
	}
	if err := newRoller(r, fmt.Sprintf("dev-%d", kills)).connects(b); err != nil {
		t.Errorf("a device that nobody touched: %v", err)
	}
	r.imprint("check")
	r.imprint("audit", "verify")
}

var crlNumber = regexp.MustCompile(`number (\d+)`)

func lastCRL(t *testing.T, r *running) int {
	t.Helper()
	n := 0
	for _, m := range crlNumber.FindAllStringSubmatch(r.imprint("revocations", "receipts", "--limit", "1"), -1) {
		n, _ = strconv.Atoi(m[1])
	}
	if n == 0 {
		t.Fatal("the receipt names no CRL")
	}
	return n
}

// rev-002, rev-003: an old backup is put back. What was revoked since stays revoked, at
// the broker too, and CRL numbers go on from where they were.
func TestRestoreDoesNotUnrevoke(t *testing.T) {
	r, b, _ := smallFleet(t, 4)
	r.imprint("backup", "backup.age")
	r.imprint("device", "revoke", "dev-0")
	r.imprint("device", "suspend", "dev-1")
	before := lastCRL(t, r)
	r.imprint("restore", "backup.age")
	if got := r.stateOf("dev-0") + " " + r.stateOf("dev-1"); got != "revoked suspended" {
		t.Errorf("after the restore: %s", got)
	}
	r.imprint("broker", "sync", "--force")
	if after := lastCRL(t, r); after <= before {
		t.Errorf("CRL number %d after %d", after, before)
	}
	for i := range 4 {
		d := newRoller(r, fmt.Sprintf("dev-%d", i))
		if err := d.connects(b); (err == nil) != (i >= 2) {
			t.Errorf("%s: %v", d.id, err)
		}
	}
	r.imprint("device", "resume", "dev-1")
	if err := newRoller(r, "dev-1").connects(b); err != nil {
		t.Errorf("resumed: %v", err)
	}
}

// A broker that is down is told when it is back; meanwhile everybody can see that it has
// not been.
func TestBrokerDown(t *testing.T) {
	r, b, broker := smallFleet(t, 3)
	broker.Stop()
	out := r.refusedCommand(exitUnavailable, "device", "revoke", "dev-0")
	if !strings.Contains(out, "1 revoked") || !strings.Contains(out, "cannot be reached") {
		t.Errorf("revoke says %q", out)
	}
	list := r.pending()
	if len(list) != 1 || list[0].Device != "dev-0" || list[0].Node != "mq" || list[0].Error == "" {
		t.Errorf("pending %+v", list)
	}
	if err := broker.Run(); err != nil {
		t.Fatal(err)
	}
	r.imprint("broker", "sync")
	if list := r.pending(); len(list) != 0 {
		t.Errorf("pending %+v", list)
	}
	if err := newRoller(r, "dev-0").connects(b); err == nil {
		t.Error("the revoked device is let in")
	}
}

// Beside a server, many revocations at once cost few reloads.
func TestManyRevocationsFewReloads(t *testing.T) {
	const revocations = 40
	r, b, broker := smallFleet(t, revocations+1)
	r.start()
	before := strings.Count(broker.Log(), "Reloading config.")
	slots := make(chan struct{}, 8)
	var wait sync.WaitGroup
	for i := range revocations {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			if out, err := r.command("device", "revoke", fmt.Sprintf("dev-%d", i)).CombinedOutput(); err != nil {
				t.Errorf("dev-%d: %v\n%s", i, err, out)
			}
		})
	}
	wait.Wait()
	reloads := strings.Count(broker.Log(), "Reloading config.") - before
	if reloads == 0 || reloads > revocations/2 {
		t.Errorf("%d reloads for %d revocations", reloads, revocations)
	}
	if list := r.pending(); len(list) != 0 {
		t.Errorf("pending %+v", list)
	}
	for i := range revocations + 1 {
		if err := newRoller(r, fmt.Sprintf("dev-%d", i)).connects(b); (err == nil) != (i == revocations) {
			t.Errorf("dev-%d: %v", i, err)
		}
	}
	t.Logf("%d revocations, %d reloads", revocations, reloads)
}

// Each rename of a delivery fails once. The broker keeps a state that is whole: good
// devices get in, nothing is open to everybody, and nothing is taken for done.
func TestDeliveryFails(t *testing.T) {
	const faults = 8
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatal("strace is not installed: apt-get install strace")
	}
	r, b, broker := smallFleet(t, faults+1)
	files := brokerFiles(t, r, "mq")
	good := newRoller(r, fmt.Sprintf("dev-%d", faults))
	failed := 0
	for n := 1; n <= faults; n++ {
		id := fmt.Sprintf("dev-%d", n-1)
		plain := r.command("device", "revoke", id)
		cmd := exec.Command(strace, append([]string{
			"-f", "-qq", "-o", "/dev/null", "-P", files, "-e", "trace=renameat,renameat2", "-e", fmt.Sprintf("inject=renameat,renameat2:error=EIO:when=%d", n),
		}, plain.Args...)...)
		cmd.Dir = plain.Dir
		out, err := cmd.CombinedOutput()
		if err := good.connects(b); err != nil {
			t.Errorf("fault %d: a good device: %v", n, err)
		}
		if err != nil {
			failed++
			if list := r.pending(); len(list) != 1 || string(list[0].Device) != id {
				t.Errorf("fault %d: pending %+v\n%s", n, list, out)
			}
			r.imprint("broker", "sync")
		}
		if err := newRoller(r, id).connects(b); err == nil {
			t.Errorf("fault %d: %s is let in", n, id)
		}
		r.imprint("check")
	}
	if failed == 0 {
		t.Error("no fault hit a delivery")
	}
	if log := broker.Log(); strings.Contains(log, "Error opening") || strings.Contains(log, "Unable to") {
		t.Errorf("the broker could not read a file\n%s", log)
	}
	t.Logf("%d of %d faults hit", failed, faults)
}

// Whole groups, lists and single certificates.
func TestRevokeBy(t *testing.T) {
	r, b, _ := smallFleet(t, 6)
	r.imprint("device", "revoke", "--group", "hall-1")
	if err := os.WriteFile(filepath.Join(r.dir, "list.txt"), []byte("# stolen\ndev-0\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.imprint("device", "revoke", "--file", "list.txt", "--reason", "keyCompromise")
	serial := regexp.MustCompile(`"serial": "([0-9a-f]{32})"`).FindStringSubmatch(r.imprint("device", "show", "dev-2", "--output", "json"))
	if serial == nil {
		t.Fatal("no serial number")
	}
	r.imprint("device", "revoke", "--certificate", serial[1], "--reason", "keyCompromise")
	for i := range 6 {
		d := newRoller(r, fmt.Sprintf("dev-%d", i))
		if err := d.connects(b); (err == nil) != (i == 4) {
			t.Errorf("%s: %v", d.id, err)
		}
	}
	if got := r.stateOf("dev-2"); got != "active" {
		t.Errorf("the device whose certificate was revoked is %s", got)
	}
	if out := r.refusedCommand(exitUsage, "device", "revoke"); !strings.Contains(out, "which devices?") {
		t.Errorf("nobody: %q", out)
	}
	r.refusedCommand(exitData, "device", "revoke", "--group", "nosuch")
	r.refusedCommand(exitData, "device", "revoke", "--certificate", strings.Repeat("1", 32))
}

// ca-014: the key of the device CA is stolen. A new one takes over, the old one is
// retired with all that it has issued, and the devices come back under the new one; each
// step says first whom it would strand.
func TestRecallIssuer(t *testing.T) {
	r, b, _ := smallFleet(t, 4)
	quiet := "name: quiet\npassword: {none: true}\ntopics:\n  - publish: devices/{id}/up/#\n"
	if err := os.WriteFile(filepath.Join(r.dir, "quiet.yaml"), []byte(quiet), 0o600); err != nil {
		t.Fatal(err)
	}
	r.imprint("profile", "add", "quiet.yaml")
	r.imprint("device", "add", "only-cert", "--profile", "quiet")
	r.imprint("device", "enroll", "only-cert", "--out", "bundles")
	r.imprint("broker", "sync")
	old := newRoller(r, "only-cert")
	if err := old.connects(b); err != nil {
		t.Fatal(err)
	}
	if out := r.refusedCommand(exitRefused, "ca", "retire", "device-1", "--reason", "stolen"); !strings.Contains(out, "only one") {
		t.Errorf("retiring the only issuer says %q", out)
	}
	r.imprint("ca", "roll", "device")
	if err := old.connects(b); err != nil {
		t.Errorf("a certificate of the issuer before: %v", err)
	}
	if out := r.imprint("ca", "retire", "device-1", "--dry-run"); !strings.Contains(out, "1 devices") || !strings.Contains(out, "only-cert") {
		t.Errorf("the consequences: %q", out)
	}
	if out := r.refusedCommand(exitRefused, "ca", "retire", "device-1", "--reason", "stolen"); !strings.Contains(out, "only-cert") {
		t.Errorf("retire says %q", out)
	}
	r.imprint("ca", "retire", "device-1", "--reason", "stolen", "--force")
	if err := old.connects(b); err == nil {
		t.Error("a certificate of the retired issuer is let in")
	}
	if err := newRoller(r, "dev-1").connects(b); err == nil {
		t.Error("another one is let in")
	}
	r.imprint("device", "enroll", "only-cert", "--rekey", "--reason", "recall", "--out", "again")
	r.imprint("broker", "sync")
	dir := filepath.Join(r.dir, "bundles")
	if err := errors.Join(os.RemoveAll(dir), os.Rename(filepath.Join(r.dir, "again"), dir)); err != nil {
		t.Fatal(err)
	}
	if err := newRoller(r, "only-cert").connects(b); err != nil {
		t.Errorf("a certificate of the new issuer: %v", err)
	}
}

// Devices that are enrolled one after the other are told to a broker together.
func TestManyEnrollmentsFewReloads(t *testing.T) {
	const devices = 12
	r, b, broker := smallFleet(t, 1)
	r.start()
	before := strings.Count(broker.Log(), "Reloading config.")
	began := time.Now()
	for i := range devices {
		id := fmt.Sprintf("new-%d", i)
		r.imprint("device", "add", id)
		r.imprint("device", "enroll", id, "--out", "bundles")
	}
	took := time.Since(began)
	last := newRoller(r, fmt.Sprintf("new-%d", devices-1))
	eventually(t, 20*time.Second, "the last device can be told things", func() bool {
		text, err := os.ReadFile(filepath.Join(brokerFiles(t, r, "mq"), "password_file"))
		return err == nil && strings.Contains(string(text), last.id+":")
	})
	if err := last.connects(b); err != nil {
		t.Error(err)
	}
	reloads := strings.Count(broker.Log(), "Reloading config.") - before
	if most := int(took/time.Second) + 4; reloads == 0 || reloads > most {
		t.Errorf("%d reloads for %d enrollments in %s", reloads, devices, took)
	}
	t.Logf("%d enrollments in %s, %d reloads", devices, took.Round(time.Millisecond), reloads)
}

// What makes no sense is refused before it is written down.
func TestBrokerAddRefuses(t *testing.T) {
	r := newFleet(t)
	out := filepath.Join(r.dir, "out")
	for _, args := range [][]string{
		{"x", "--out", out, "--admin", "/tmp/x.sock"}, // no way to reload
		{"x", "--out", out, "--admin", "/tmp/x.sock", "--unit", "a", "--pid-file", "b"},
		{"x", "--out", out, "--admin", "/tmp/x.sock", "--target", "rabbitmq"},
		{"a.b", "--out", out, "--admin", "/tmp/x.sock", "--unit", "a"},
		{strings.Repeat("x", 41), "--out", out, "--admin", "/tmp/x.sock", "--unit", "a"},
	} {
		r.refusedCommand(exitData, append([]string{"broker", "add"}, args...)...)
	}
	r.refusedCommand(exitUsage, "broker", "add", "x", "--out", out, "--admin", "/tmp/x.sock", "--target", "nosuch")
	if list := r.imprint("broker", "list", "--output", "json"); strings.TrimSpace(list) != "[]" {
		t.Errorf("brokers %s", list)
	}
	r.refusedCommand(exitConfig, "broker", "sync")
	r.refusedCommand(exitData, "broker", "sync", "nosuch")
}

// Every broker is told, and each has its receipt; one that is down keeps nobody waiting.
func TestSeveralBrokers(t *testing.T) {
	r, first, _ := smallFleet(t, 3)
	second, broker := runsMosquitto(r, "mq-2", "--form", "expanded")
	r.imprint("broker", "sync")
	var got struct {
		Receipts []struct{ Node string }
	}
	if err := json.Unmarshal([]byte(r.imprint("device", "revoke", "dev-0", "--output", "json")), &got); err != nil || len(got.Receipts) != 2 || got.Receipts[0].Node != "mq" || got.Receipts[1].Node != "mq-2" {
		t.Errorf("receipts %+v, %v", got, err)
	}
	broker.Stop()
	out := r.refusedCommand(exitUnavailable, "device", "revoke", "dev-1")
	if !strings.Contains(out, "mq (mosquitto): revision") || !strings.Contains(out, "mq-2") {
		t.Errorf("with one broker down it says %q", out)
	}
	if list := r.pending(); len(list) != 1 || list[0].Node != "mq-2" {
		t.Errorf("pending %+v", list)
	}
	if err := broker.Run(); err != nil {
		t.Fatal(err)
	}
	r.imprint("broker", "sync")
	for i := range 3 {
		d := newRoller(r, fmt.Sprintf("dev-%d", i))
		for _, b := range []*liveBroker{first, second} {
			if err := d.connects(b); (err == nil) != (i == 2) {
				t.Errorf("%s at %s: %v", d.id, b.name, err)
			}
		}
	}
	r.imprint("broker", "remove", "mq-2")
	r.imprint("device", "revoke", "dev-2")
	if err := newRoller(r, "dev-2").connects(second); err != nil {
		t.Errorf("a broker that imprint was told to forget: %v", err)
	}
}
