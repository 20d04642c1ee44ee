package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/remote"
)

func parseOne(text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

// serving is a server that runs.
type serving struct {
	cmd  *exec.Cmd
	addr string
}

var line = regexp.MustCompile(`msg=serving https=(\S+)`)

func start(fleet, program string) (*serving, error) {
	log := filepath.Join(fleet, "..", "serve.log")
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(program, "--fleet", fleet, "--passphrase-file", filepath.Join(fleet, "..", "pass"), "serve", "--listen", "127.0.0.1:0", "--log-level", "warn")
	cmd.Args = append(cmd.Args[:len(cmd.Args)-1], "info")
	cmd.Stderr = out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for range 1000 {
		text, err := os.ReadFile(log)
		if err != nil {
			return nil, err
		}
		if m := line.FindSubmatch(text); m != nil {
			return &serving{cmd, string(m[1])}, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, errors.New("the server does not serve: see " + log)
}

// kill ends a server with SIGKILL at a random moment under load, starts it again,
// and compares what clients were told with what there is.
func kill(fleet, program string, times int) error {
	roots, err := readRoots(fleet)
	if err != nil {
		return err
	}
	config := &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13}
	const clients = 64
	s, err := start(fleet, program)
	if err != nil {
		return err
	}
	acked, retried := 0, 0
	for round := range times {
		devices, err := makeDevices(fleet, fmt.Sprintf("kill-%d-%d", time.Now().UnixNano()%1e9, round), 600)
		if err != nil {
			return err
		}
		var mu sync.Mutex
		got := map[string][]byte{}
		conns := make([]*conn, clients)
		go func() {
			time.Sleep(time.Duration(5+rand.IntN(120)) * time.Millisecond)
			_ = s.cmd.Process.Kill()
		}()
		_ = parallel(clients, len(devices), func(w, i int) error {
			var err error
			if conns[w] == nil {
				if conns[w], err = dial(s.addr, config, nil); err != nil {
					return err
				}
			}
			code, body, err := conns[w].do(enrollRequest(&devices[i]))
			if err != nil {
				return err
			}
			if code != http.StatusOK {
				return fmt.Errorf("%d %s", code, body)
			}
			leaf, err := readLeaf(body)
			mu.Lock()
			got[devices[i].id] = leaf
			mu.Unlock()
			return err
		})
		_ = s.cmd.Wait()
		for _, c := range conns {
			if c != nil {
				_ = c.c.Close()
			}
		}
		if s, err = start(fleet, program); err != nil {
			return err
		}
		acked += len(got)
		n, err := check(fleet, s.addr, config, devices, got)
		if err != nil {
			return fmt.Errorf("round %d: %w", round+1, err)
		}
		retried += n
	}
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	fmt.Printf("%d kills, %d certificates acknowledged, %d requests repeated afterwards: 0 lost, 0 tokens burnt, 0 second certificates\n", times, acked, retried)
	return nil
}

// check finds every certificate that a client has received, octet for octet, and
// asks again for the rest: each gets exactly one.
func check(fleet, addr string, config *tls.Config, devices []device, got map[string][]byte) (retried int, err error) {
	c, err := dial(addr, config, nil)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.c.Close() }()
	for i := range devices {
		d := &devices[i]
		code, body, err := c.do(enrollRequest(d))
		if err != nil || code != http.StatusOK {
			return retried, fmt.Errorf("%s asks again: %d %s %w", d.id, code, body, err)
		}
		leaf, err := readLeaf(body)
		if err != nil {
			return retried, err
		}
		if have, ok := got[d.id]; ok && string(have) != string(leaf) {
			return retried, fmt.Errorf("%s had a certificate and got another one", d.id)
		}
		retried++
		got[d.id] = leaf
	}
	store, err := remote.Dial(context.Background(), filepath.Join(fleet, "imprint.sock"))
	if err != nil {
		return retried, err
	}
	return retried, store.Read(context.Background(), func(r inventory.Reader) error {
		for i := range devices {
			d := &devices[i]
			n := 0
			for cred, err := range r.Credentials(inventory.CredentialQuery{Device: inventory.DeviceID(d.id)}) {
				if err != nil {
					return err
				}
				if n++; cred.Certificate == nil || string(cred.Certificate.DER) != string(got[d.id]) {
					return fmt.Errorf("%s has another certificate on record", d.id)
				}
			}
			if n != 1 {
				return fmt.Errorf("%s has %d certificates", d.id, n)
			}
		}
		for t, err := range r.Tokens("") {
			if err != nil {
				return err
			}
			if t.Uses > t.Limit {
				return fmt.Errorf("token %s was used %d times", t.ID(), t.Uses)
			}
		}
		return nil
	})
}
