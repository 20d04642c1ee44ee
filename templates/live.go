package templates

import (
	"context"
	"errors"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
)

// A LiveTarget is a target whose brokers imprint can work on while they run.
type LiveTarget interface {
	Target

	// Connect returns a driver for one running broker. It may be down: then the
	// methods of the driver say so.
	Connect(l Live) (Driver, error)
}

// Live says how a running broker is reached by whoever administers it.
type Live struct {
	Dir     *durable.Dir // where the broker's files are written
	Admin   string       // path of a Unix socket, or an HTTP or HTTPS URL: the target says which
	User    string       // of Admin
	Secret  inventory.Secret
	Trust   []byte // PEM, for an HTTPS URL; empty: the system's roots
	Reload  Reload
	Timeout time.Duration // of one call; zero means 10 s
}

// A Reload is how a broker is told to read its files again: one of its fields.
type Reload struct {
	PIDFile string   // its process gets SIGHUP
	Unit    string   // of systemd, reloaded by systemctl
	Command []string // run without a shell
}

// A Driver works on one running broker. Its methods are called one after the
// other, in the order below, as often as needed; each can be repeated. An error
// that wraps [ErrUnreachable] says that the broker is down or away.
type Driver interface {
	// Deliver brings what the broker has to v, as files or by its API. It takes
	// rights away before it gives any. A broker that works with what is delivered
	// at once needs no Reload after it.
	Deliver(ctx context.Context, v View, o Options) (Summary, error)

	// Reload makes the broker read what was delivered. It returns when the broker
	// has been told; whether it has obeyed is for a probe to find out.
	Reload(ctx context.Context) error

	// Kick ends the live sessions of devices, however they were opened.
	Kick(ctx context.Context, ids []inventory.DeviceID) error

	// Live returns those of ids that have a session now.
	Live(ctx context.Context, ids []inventory.DeviceID) ([]inventory.DeviceID, error)

	// Close lets go of what Kick holds.
	Close() error
}

// ErrUnreachable reports a broker that cannot be told anything now.
var ErrUnreachable = errors.New("broker cannot be reached")
