package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/remote"
)

// deciding is what a run of decide is told.
type deciding struct {
	fleet, addr, pid  string
	archive, identity string // what bootstrap handed out, and the key of it
	devices, rate     int
	clients, revoke   int
	duration          time.Duration
	dialect           dialect
}

// decide asks as a broker does, at a rate that does not depend on the answers, and
// prints how long they took, what they cost, and the same for a server that says yes
// to everybody.
func decide(args []string) error {
	var d deciding
	flags := flag.NewFlagSet("decide", flag.ExitOnError)
	flags.StringVar(&d.fleet, "fleet", "fleet", "`directory` of the fleet")
	flags.StringVar(&d.addr, "addr", "", "address of the server")
	flags.StringVar(&d.pid, "pid", "", "process of the server")
	flags.StringVar(&d.archive, "archive", "", "what bootstrap handed out")
	flags.StringVar(&d.identity, "identity", "", "age key of the archive")
	flags.IntVar(&d.devices, "devices", 0, "devices in the fleet, dev-0000000 and on")
	flags.IntVar(&d.rate, "rate", 5000, "decisions in a second")
	flags.DurationVar(&d.duration, "duration", 10*time.Second, "how long")
	flags.IntVar(&d.clients, "clients", 32, "connections, kept open")
	flags.IntVar(&d.revoke, "revoke", 10, "devices that are revoked meanwhile")
	name := flags.String("dialect", "emqx", "emqx, rabbitmq or json")
	_ = flags.Parse(args) // exits
	var ok bool
	if d.dialect, ok = dialects()[*name]; !ok || d.devices < 1000 || d.rate < 1 || d.duration > 10*time.Minute {
		return errors.New("decide: want a dialect, 1000 devices or more, a rate, and at most 10 min")
	}
	return d.run(*name)
}

func (d *deciding) run(name string) error {
	runtime.GOMAXPROCS(4) // one of them only watches the clock
	roots, err := readRoots(d.fleet)
	if err != nil {
		return err
	}
	registrar, token, err := d.registrar()
	if err != nil {
		return err
	}
	passwords, err := d.passwords()
	if err != nil {
		return err
	}
	questions := d.questions(token, passwords)
	bare, err := startBare()
	if err != nil {
		return err
	}
	defer bare.stop()
	raw, err := d.measure(bare.addr, bare.pid, bare.roots, questions, nil)
	if err != nil {
		return fmt.Errorf("the server that says yes: %w", err)
	}
	var ends endings
	served, err := d.measure(d.addr, d.pid, roots, questions, func(config *tls.Config) error { return d.revocations(registrar, config, token, &ends) })
	if err != nil {
		return err
	}
	d.report(name, raw, served, &ends)
	return nil
}

// registrar revokes devices as `imprint device revoke` does, through the server's
// socket, and makes the token of the broker.
func (d *deciding) registrar() (*enroll.Registrar, string, error) {
	store, err := remote.Dial(context.Background(), filepath.Join(d.fleet, "imprint.sock"))
	if err != nil {
		return nil, "", err
	}
	r, err := enroll.New(enroll.Config{
		Store: store, Organization: "acme", TrustDomain: "acme",
		Open: func(context.Context, inventory.Issuer) (*ca.Issuer, error) { return nil, ca.ErrKeyUnavailable },
	})
	if err != nil {
		return nil, "", err
	}
	secret, _, err := r.MakeToken(context.Background(), "bench", "", inventory.Token{Role: inventory.BrokerRole, Name: "bench"})
	return r, api.TokenText(secret.Reveal()), err
}

// The last devices of the fleet are there to be revoked, and are not asked about
// otherwise.
func (d *deciding) kept() int { return d.devices - d.devices/50 }

func deviceName(i int) string { return fmt.Sprintf("dev-%07d", i) }

// A question is a request, and the answer that is right.
type question struct {
	request []byte
	yes     bool
}

// questions makes the load: of a hundred questions 5 are whether a client may connect
// with its password; of the others one in ten is about a topic that is another
// device's. Any device of the fleet may be the one.
func (d *deciding) questions(token string, passwords []login) []question {
	pick := rand.New(rand.NewPCG(1, 2)) // the same for both servers
	all := make([]question, d.rate*int(d.duration/time.Millisecond)/1000)
	for i := range all {
		if pick.IntN(100) < 5 {
			l := passwords[pick.IntN(len(passwords))]
			all[i] = question{d.dialect.connect(token, l.id, l.password), true}
			continue
		}
		id := deviceName(pick.IntN(d.kept()))
		topic, yes := "devices/"+id+"/up/temperature", pick.IntN(10) > 0
		if !yes {
			topic = "devices/" + deviceName(pick.IntN(d.kept())) + "x/up/temperature"
		}
		all[i] = question{d.dialect.access(token, id, topic), yes}
	}
	return all
}

// measured is what a server did.
type measured struct {
	took   []time.Duration // from the moment at which the question was due; sorted
	each   time.Duration   // CPU for one
	second float64         // answers in one
}

func (m *measured) at(part float64) time.Duration {
	return m.took[min(len(m.took)-1, int(part*float64(len(m.took))))]
}

// measure asks all questions, each when it is due, whatever became of those before: a
// server that stops for a moment makes all wait that were due in it, and they count.
func (d *deciding) measure(addr, pid string, roots *x509.CertPool, questions []question, meanwhile func(*tls.Config) error) (*measured, error) {
	config := &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13}
	conns := make([]*conn, d.clients)
	for i := range conns {
		c, err := dial(addr, config, nil)
		if err != nil {
			return nil, err
		}
		defer func() { _ = c.c.Close() }()
		if err := c.c.SetDeadline(time.Now().Add(d.duration + 30*time.Second)); err != nil {
			return nil, err
		}
		conns[i] = c
	}
	for i := range min(len(questions), 20*d.clients) { // both ends grow their buffers
		if _, err := d.dialect.ask(conns[i%d.clients], questions[i].request); err != nil {
			return nil, err
		}
	}
	m := &measured{took: make([]time.Duration, len(questions))}
	due := make(chan int, len(questions))
	errs := make(chan error, d.clients+1)
	var wg sync.WaitGroup
	var wrong atomic.Int64
	before, start := runtimeOf(pid), time.Now().Add(10*time.Millisecond)
	when := func(i int) time.Time { return start.Add(time.Duration(i) * time.Second / time.Duration(d.rate)) }
	for _, c := range conns {
		wg.Go(func() {
			for i := range due {
				yes, err := d.dialect.ask(c, questions[i].request)
				if err != nil {
					errs <- err
					return
				}
				if m.took[i] = time.Since(when(i)); yes != questions[i].yes && pid == d.pid {
					wrong.Add(1)
				}
			}
		})
	}
	if meanwhile != nil {
		wg.Go(func() { errs <- meanwhile(config) })
	}
	wg.Go(func() { pace(len(questions), when, due) })
	wg.Wait()
	m.second = float64(len(questions)) / time.Since(start).Seconds()
	m.each = (runtimeOf(pid) - before) / time.Duration(len(questions))
	slices.Sort(m.took)
	close(errs)
	for err := range errs {
		if err != nil {
			return nil, err
		}
	}
	if n := wrong.Load(); n > 0 {
		return nil, fmt.Errorf("%d of %d answers are wrong", n, len(questions))
	}
	return m, nil
}

// runtimeOf is the CPU of all threads of a process, to the nanosecond: a process that
// wakes for less than a clock tick, thousands of times a second, is counted wrong in the
// ticks of [cpu].
func runtimeOf(pid string) time.Duration {
	files, err := filepath.Glob("/proc/" + pid + "/task/*/schedstat")
	if err != nil || len(files) == 0 {
		return cpu(pid)
	}
	var sum time.Duration
	for _, name := range files {
		var ns int64
		if text, err := os.ReadFile(name); err == nil {
			_, _ = fmt.Sscan(string(text), &ns)
		}
		sum += time.Duration(ns)
	}
	return sum
}

// pace sends the numbers from 0, each when it is due. It sleeps in the kernel: the
// timers of Go are late by up to a millisecond.
func pace(n int, when func(int) time.Time, due chan<- int) {
	runtime.LockOSThread()
	defer close(due)
	for i := range n {
		if wait := time.Until(when(i)); wait > 0 {
			tv := unix.NsecToTimeval(wait.Nanoseconds())
			_, _ = unix.Select(0, nil, nil, nil, &tv) // woken early, a question is asked early
		}
		due <- i
	}
}

// endings is how long it took until a device that was revoked was denied.
type endings struct {
	denied []time.Duration // from the return of Revoke
	yes    int             // answers to questions asked after it
	revoke []time.Duration // Revoke itself
}

// revocations revokes devices one after the other, all through the load, and asks
// for each until it is denied.
func (d *deciding) revocations(r *enroll.Registrar, config *tls.Config, token string, e *endings) error {
	if d.revoke == 0 {
		return nil
	}
	c, err := dial(d.addr, config, nil)
	if err != nil {
		return err
	}
	defer func() { _ = c.c.Close() }()
	every := time.NewTicker(d.duration / time.Duration(d.revoke+1))
	defer every.Stop()
	for _, n := range rand.Perm(d.devices - d.kept())[:d.revoke] {
		<-every.C
		id := deviceName(d.kept() + n)
		ask := d.dialect.access(token, id, "devices/"+id+"/up/temperature")
		if yes, err := d.dialect.ask(c, ask); err != nil || !yes {
			return fmt.Errorf("%s is denied before it is revoked: %w", id, err)
		}
		began := time.Now()
		if _, err := r.Revoke(context.Background(), "bench", "", inventory.KeyCompromise, inventory.DeviceID(id)); err != nil {
			return err
		}
		ended := time.Now()
		for yes := true; yes; {
			if yes, err = d.dialect.ask(c, ask); err != nil {
				return err
			}
			if yes {
				e.yes++
			}
			if time.Since(ended) > 10*time.Second {
				return fmt.Errorf("%s is allowed 10 s after it was revoked", id)
			}
		}
		e.denied, e.revoke = append(e.denied, time.Since(ended)), append(e.revoke, ended.Sub(began))
	}
	return nil
}

func (d *deciding) report(name string, raw, served *measured, e *endings) {
	out := bufio.NewWriter(os.Stdout)
	defer func() { _ = out.Flush() }()
	line := func(what string, m *measured) {
		_, _ = fmt.Fprintf(out, "%-24s %6.0f/s  CPU %4d us  p50 %s  p99 %s  p99.9 %s  max %s ms\n", what, m.second, m.each.Microseconds(), ms(m.at(.5)), ms(m.at(.99)), ms(m.at(.999)), ms(m.at(1)))
	}
	_, _ = fmt.Fprintf(out, "%d devices, %d decisions, %d connections\n", d.devices, len(served.took), d.clients)
	line("says yes to everybody", raw)
	line("imprint, "+name, served)
	goal := func(what, value, unit, relation, bound string, ok bool) {
		verdict := "over"
		if ok {
			verdict = "PASS"
		}
		_, _ = fmt.Fprintf(out, "  %-44s %10s %-10s goal %s %s   %s\n", what, value, unit, relation, bound, verdict)
	}
	rate := .99 * float64(d.rate)
	goal("decisions in a second", fmt.Sprintf("%.0f", served.second), "", ">=", fmt.Sprintf("%.0f", rate), served.second >= rate)
	goal("p99, from when the question was due", ms(served.at(.99)), "ms", "<=", "5", served.at(.99) <= 5*time.Millisecond)
	times := float64(served.each) / float64(max(raw.each, 1))
	goal("CPU of a decision, times that of a plain yes", fmt.Sprintf("%.2f", times), "", "<=", "2.5", times <= 2.5)
	if len(e.denied) > 0 {
		slowest := slices.Max(e.denied)
		goal("from Revoke to the denial, slowest of "+fmt.Sprint(len(e.denied)), ms(slowest), "ms", "<=", "1000", slowest <= time.Second)
		goal("allowed after Revoke had returned", fmt.Sprint(e.yes), "", "<=", "0", e.yes == 0)
		_, _ = fmt.Fprintf(out, "Revoke itself, slowest: %s ms\n", ms(slices.Max(e.revoke)))
	}
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f", float64(d.Microseconds())/1000) }
