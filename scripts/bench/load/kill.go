package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/remote"
)

const (
	faultClients = 64
	faultDevices = 800 // in a round
)

// A stop ends a server under load.
type stop struct {
	name   string
	signal syscall.Signal

	// answered demands that whatever the server has done, it has said: what is
	// recorded and what clients were told are the same. After kill -9 there may be
	// up to one request of each client that was done and not answered.
	answered bool
}

var (
	killStop = stop{name: "kill -9", signal: syscall.SIGKILL}
	termStop = stop{name: "SIGTERM", signal: syscall.SIGTERM, answered: true}
)

// faults ends a server at a random moment under load, starts it again and compares
// what clients were told with what there is, so many times.
func faults(fleet, program string, times int, how stop) error {
	s, err := start(fleet, program)
	if err != nil {
		return err
	}
	defer func() { s.end() }()
	var sum tally
	for round := range times {
		if s, err = sum.round(s, fleet, program, how); err != nil {
			return fmt.Errorf("%s, round %d: %w", how.name, round+1, err)
		}
	}
	fmt.Printf("%-8s %d times under %d clients: %d certificates acknowledged, all on record octet for octet; %d done and not answered; every token has bought what it was used for; %d repeated requests got the certificate that was there\n",
		how.name, times, faultClients, sum.acked, sum.silent, sum.repeated)
	if how.answered && sum.silent > 0 {
		return fmt.Errorf("%s: %d requests were accepted, done and not answered", how.name, sum.silent)
	}
	return nil
}

// A tally counts over all rounds.
type tally struct{ acked, silent, repeated int }

func (t *tally) round(s *serving, fleet, program string, how stop) (*serving, error) {
	devices, err := makeDevices(fleet, fmt.Sprintf("fault-%d", time.Now().UnixNano()), faultDevices)
	if err != nil {
		return s, err
	}
	got, err := underLoad(s, fleet, devices, how)
	if err != nil {
		return s, err
	}
	if s, err = start(fleet, program); err != nil {
		return s, err
	}
	there, err := onRecord(fleet, devices, got)
	if err != nil {
		return s, err
	}
	t.acked += len(got)
	t.silent += len(there) - len(got)
	t.repeated += len(there)
	return s, everybodyAgain(s, fleet, devices, there)
}

// underLoad lets all devices enroll, ends the server meanwhile, and returns what
// they were told. A refusal is an error at any time, a broken connection one unless
// the server was being ended.
func underLoad(s *serving, fleet string, devices []device, how stop) (map[string][]byte, error) {
	config, err := clientConfig(fleet)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var ending atomic.Bool
	var refused error
	got := map[string][]byte{}
	conns, err := dialAll(s.addr, config, faultClients, nobody)
	defer closeAll(conns)
	if err != nil {
		return nil, err
	}
	time.AfterFunc(time.Duration(1+rand.IntN(150))*time.Millisecond, func() {
		ending.Store(true)
		_ = s.cmd.Process.Signal(how.signal)
	})
	_ = parallel(faultClients, len(devices), func(w, i int) error {
		leaf, err := conns[w].enroll(&devices[i])
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			got[devices[i].id] = leaf
		} else if status := (*statusError)(nil); errors.As(err, &status) || !ending.Load() {
			refused = err
		}
		return err
	})
	// SIGKILL makes Wait fail; SIGTERM must not.
	if err := s.wait(); err != nil && how.signal != syscall.SIGKILL {
		return nil, fmt.Errorf("the server ended with %w", err)
	}
	return got, refused
}

// onRecord returns the certificates that the inventory has of devices. What a
// client was told is there, octet for octet; nobody has two; and a token has as
// many uses as it has bought certificates.
func onRecord(fleet string, devices []device, told map[string][]byte) (map[string][]byte, error) {
	there := map[string][]byte{}
	return there, read(fleet, func(r inventory.Reader) error {
		for i := range devices {
			d := &devices[i]
			var certs [][]byte
			for cred, err := range r.Credentials(inventory.CredentialQuery{Device: inventory.DeviceID(d.id), Kind: inventory.CertificateCredential}) {
				if err != nil {
					return err
				}
				certs = append(certs, bytes.Clone(cred.Certificate.DER))
			}
			if len(certs) > 1 {
				return fmt.Errorf("%s has %d certificates", d.id, len(certs))
			}
			if leaf, ok := told[d.id]; ok && (len(certs) == 0 || !bytes.Equal(certs[0], leaf)) {
				return fmt.Errorf("%s has received a certificate that is not on record", d.id)
			}
			t, err := r.Token(d.hash)
			if err != nil {
				return err
			}
			if int(t.Uses) != len(certs) {
				return fmt.Errorf("the token of %s was used %d times and has bought %d certificates", d.id, t.Uses, len(certs))
			}
			if len(certs) == 1 {
				there[d.id] = certs[0]
			}
		}
		return nil
	})
}

// everybodyAgain repeats all requests: who has a certificate gets that one, and in
// the end everybody has one.
func everybodyAgain(s *serving, fleet string, devices []device, there map[string][]byte) error {
	config, err := clientConfig(fleet)
	if err != nil {
		return err
	}
	conns, err := dialAll(s.addr, config, 16, nobody)
	defer closeAll(conns)
	if err != nil {
		return err
	}
	leaves := make([][]byte, len(devices))
	err = parallel(len(conns), len(devices), func(w, i int) (err error) {
		leaves[i], err = conns[w].enroll(&devices[i])
		if have, ok := there[devices[i].id]; err == nil && ok && !bytes.Equal(have, leaves[i]) {
			err = fmt.Errorf("%s had a certificate and got another one", devices[i].id)
		}
		return err
	})
	if err != nil {
		return err
	}
	told := map[string][]byte{}
	for i := range devices {
		told[devices[i].id] = leaves[i]
	}
	there, err = onRecord(fleet, devices, told)
	if err == nil && len(there) != len(devices) {
		err = fmt.Errorf("%d of %d devices have a certificate in the end", len(there), len(devices))
	}
	return err
}

// read reads the inventory through the server's socket.
func read(fleet string, fn func(inventory.Reader) error) error {
	store, err := remote.Dial(context.Background(), filepath.Join(fleet, "imprint.sock"))
	if err != nil {
		return err
	}
	return errors.Join(store.Read(context.Background(), fn), store.Close())
}

// fullDisk fills the disk that the fleet is on, which has to be small. All who ask
// then are told to come again and get no certificate; once there is room all get
// one, and nothing that was acknowledged before is lost.
func fullDisk(fleet, program string) error {
	s, err := start(fleet, program)
	if err != nil {
		return err
	}
	defer s.end()
	devices, err := makeDevices(fleet, fmt.Sprintf("full-%d", time.Now().UnixNano()), 6*faultDevices)
	if err != nil {
		return err
	}
	config, err := clientConfig(fleet)
	if err != nil {
		return err
	}
	conns, err := dialAll(s.addr, config, faultClients, nobody)
	defer closeAll(conns)
	if err != nil {
		return err
	}
	empty, err := fill(filepath.Join(fleet, "ballast"))
	if err != nil {
		return err
	}
	defer empty()
	var mu sync.Mutex
	told := map[string][]byte{}
	sent := map[int]int{} // by status
	err = parallel(faultClients, len(devices), func(w, i int) error {
		leaf, err := conns[w].enroll(&devices[i])
		mu.Lock()
		defer mu.Unlock()
		status := &statusError{code: http.StatusOK}
		if err != nil && !errors.As(err, &status) {
			return err
		}
		sent[status.code]++
		if status.code == http.StatusOK {
			told[devices[i].id] = leaf
		} else if status.code != http.StatusServiceUnavailable || status.retryAfter == "" {
			return fmt.Errorf("with a full disk: %w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if sent[http.StatusServiceUnavailable] == 0 {
		return errors.New("the disk was not full")
	}
	there, err := onRecord(fleet, devices, told)
	if err != nil {
		return fmt.Errorf("while the disk is full: %w", err)
	}
	if len(there) != len(told) {
		return fmt.Errorf("%d certificates on record, %d handed out", len(there), len(told))
	}
	empty()
	if err := everybodyAgain(s, fleet, devices, there); err != nil {
		return fmt.Errorf("once there is room: %w", err)
	}
	fmt.Printf("full disk: %d requests answered 200, %d answered 503 with Retry-After; once there is room all %d have one certificate\n",
		sent[http.StatusOK], sent[http.StatusServiceUnavailable], len(devices))
	return nil
}
