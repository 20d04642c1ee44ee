package mosquitto

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/mqtt"
)

var _ templates.LiveTarget = Target{}

// Connect implements [templates.LiveTarget]. Live.Admin is the path of the socket
// in [templates.Admin]; nothing is connected before it is needed.
//
// How a revocation takes effect depends on what the device has. A password is
// gone with the SIGHUP, and its session with it. A certificate is refused at the
// next handshake after SIGHUP, but its session goes on (Mosquitto never drops it
// for a new CRL). So Kick takes the session over: a client with the device's
// client identifier makes the broker end the older one (MQTT 3.1.1 §3.1.4-2), and
// its queued messages are dropped. The new session is held until Close; if somebody
// takes it over meanwhile, the device has come back, and Live says so.
func (t Target) Connect(l templates.Live) (templates.Driver, error) {
	if l.Dir == nil || l.Admin == "" || l.User == "" {
		return nil, errors.New("mosquitto: a live broker needs a directory, the socket of its administrator and a user name")
	}
	n := 0
	for _, set := range []bool{l.Reload.PIDFile != "", l.Reload.Unit != "", len(l.Reload.Command) > 0} {
		if set {
			n++
		}
	}
	if n != 1 {
		return nil, &inventory.InvalidError{Field: "reload", Want: "one of PID file, systemd unit or command"}
	}
	if l.Timeout == 0 {
		l.Timeout = 10 * time.Second
	}
	return &driver{target: t, live: l, held: map[string]*hold{}}, nil
}

// A driver works on one running Mosquitto.
type driver struct {
	target Target
	live   templates.Live

	mu   sync.Mutex
	held map[string]*hold // by canonical ID
}

// A hold is a session that was taken over.
type hold struct {
	conn  net.Conn
	ended chan struct{} // closed when the broker has ended it
}

// Deliver implements [templates.Driver]. With dynamic security it also tells the
// broker, which reads its file only at its start: who is gone first.
func (d *driver) Deliver(ctx context.Context, v templates.View, o templates.Options) (templates.Summary, error) {
	sum, err := d.target.Write(d.live.Dir, v, o)
	if err != nil || o.Form != Dynsec {
		return sum, err
	}
	told, err := d.control(ctx, o)
	if err != nil || !told {
		return sum, err
	}
	// The broker has written its file anew, in its own words.
	again, err := d.target.Write(d.live.Dir, v, o)
	again.Changed = again.Changed || sum.Changed
	return again, err
}

// Reload implements [templates.Driver].
func (d *driver) Reload(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, d.live.Timeout)
	defer cancel()
	switch r := d.live.Reload; {
	case r.PIDFile != "":
		return hangUp(r.PIDFile)
	case r.Unit != "":
		return run(ctx, "systemctl", "reload", r.Unit)
	default:
		return run(ctx, r.Command[0], r.Command[1:]...)
	}
}

// hangUp sends SIGHUP to the process of a PID file, if that process is a
// Mosquitto: SIGHUP ends most other programs.
func hangUp(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("%w: reading its PID file: %w", templates.ErrUnreachable, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 1 {
		return fmt.Errorf("%w: %s holds no PID", templates.ErrUnreachable, path)
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Stat("/proc/self/comm"); err == nil {
			return fmt.Errorf("%w: process %d of %s is not running", templates.ErrUnreachable, pid, path)
		}
	case err != nil:
		return err
	case !strings.HasPrefix(string(name), "mosquitto"):
		return fmt.Errorf("%w: process %d of %s is %q, not mosquitto", templates.ErrUnreachable, pid, path, strings.TrimSpace(string(name)))
	}
	if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
		return fmt.Errorf("%w: sending SIGHUP to process %d: %w", templates.ErrUnreachable, pid, err)
	}
	return nil
}

// run runs a command of the operator's. What it says is part of the error.
func run(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput() //nolint:gosec // the operator of the broker says how it is reloaded
	if err != nil {
		return fmt.Errorf("%w: %s: %w: %.256q", templates.ErrUnreachable, name, err, out)
	}
	return nil
}

// kicksAtOnce is how many sessions are taken over at the same time.
const kicksAtOnce = 8

// Kick implements [templates.Driver].
func (d *driver) Kick(ctx context.Context, ids []inventory.DeviceID) error {
	slots := make(chan struct{}, kicksAtOnce)
	errs := make([]error, len(ids))
	var wait sync.WaitGroup
	for i, id := range ids {
		slots <- struct{}{}
		if i > 0 && errs[0] != nil && errors.Is(errs[0], templates.ErrUnreachable) {
			<-slots
			break // the others would wait as long for nothing
		}
		wait.Go(func() {
			defer func() { <-slots }()
			errs[i] = d.take(ctx, id)
		})
		if i == 0 {
			wait.Wait()
		}
	}
	wait.Wait()
	return errors.Join(slices.Compact(errs)...)
}

// take takes over the session of one device.
func (d *driver) take(ctx context.Context, id inventory.DeviceID) error {
	conn, err := d.dial(ctx)
	if err != nil {
		return err
	}
	login := mqtt.Login{ClientID: string(id), Username: d.live.User, Password: d.live.Secret.Reveal()}
	if err := mqtt.Connect(conn, login, time.Now().Add(d.live.Timeout)); err != nil {
		return errors.Join(fmt.Errorf("%w: taking over the session of %s: %w", templates.ErrUnreachable, id, err), conn.Close())
	}
	h := &hold{conn: conn, ended: make(chan struct{})}
	go func() {
		mqtt.WaitEnd(conn)
		close(h.ended)
	}()
	d.mu.Lock()
	old := d.held[id.Canonical()]
	d.held[id.Canonical()] = h
	d.mu.Unlock()
	if old != nil { // the broker has ended it: the same identifier
		_ = old.conn.Close()
	}
	return nil
}

func (d *driver) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.live.Timeout)
	defer cancel()
	for {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "unix", d.live.Admin)
		if err == nil {
			return conn, nil
		}
		// A broker that is busy with a reload lets a few wait, and then no more.
		if !errors.Is(err, syscall.EAGAIN) || ctx.Err() != nil {
			return nil, fmt.Errorf("%w: %w", templates.ErrUnreachable, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Live implements [templates.Driver]: a device whose session is held has none
// unless it has taken its own back. One that was not kicked is unknown, and counts
// as live.
func (d *driver) Live(_ context.Context, ids []inventory.DeviceID) ([]inventory.DeviceID, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var live []inventory.DeviceID
	for _, id := range ids {
		h := d.held[id.Canonical()]
		if h == nil {
			live = append(live, id)
			continue
		}
		select {
		case <-h.ended:
			live = append(live, id)
		default:
		}
	}
	return live, nil
}

// Close implements [templates.Driver].
func (d *driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, h := range d.held {
		mqtt.Disconnect(h.conn)
		_ = h.conn.Close() // it is of no use any more
		delete(d.held, id)
	}
	return nil
}
