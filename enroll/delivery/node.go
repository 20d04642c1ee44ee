package delivery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/templates"
)

// A Node is one running broker that imprint keeps up to date.
type Node struct {
	Name    string // at most [enroll.MaxNodeName] bytes
	Target  templates.LiveTarget
	Live    templates.Live
	Options templates.Options

	// Address is the host or IP address at which probes connect, to the ports of
	// the broker. ServerName is what its certificate is checked for.
	Address    string
	ServerName string

	// Broker returns the node with its certificate, renewed if that is due.
	Broker func(ctx context.Context) (templates.Node, error)

	// Dir is where imprint keeps what it knows of the node; only one process at a
	// time works on a node, and the lock is here.
	Dir *durable.Dir

	// Deadline is how long a revocation may take to be proven, besides 5 ms for each
	// session that is to be ended. Zero means 15 s.
	Deadline time.Duration
}

// workKind is the kind of [inventory.Work] that says how far a node is.
const workKind = "node"

// A Progress is how far a node is: what is recorded of it.
type Progress struct {
	Target   string    `json:"target"`
	Revision uint64    `json:"revision"` // of the inventory, proven to be in force
	At       time.Time `json:"at,omitzero"`
	Failed   time.Time `json:"failed,omitzero"` // since when it fails; zero if it does not
	Error    string    `json:"error,omitempty"`

	// CRLNumbers are the numbers of the CRLs that the node has, by issuer, and
	// NextUpdate when the first of them lapses.
	CRLNumbers map[string]uint64 `json:"crlNumbers,omitempty"`
	NextUpdate time.Time         `json:"nextUpdate,omitzero"`
}

// readProgress reads what is recorded of a node. One that was never brought up to
// date is at revision 0.
func readProgress(in inventory.Reader, name string) (Progress, inventory.Work, error) {
	w, err := in.Work(workKind, name)
	if errors.Is(err, inventory.ErrNotFound) {
		return Progress{}, inventory.Work{Kind: workKind, Name: name}, nil
	}
	if err != nil {
		return Progress{}, w, err
	}
	var p Progress
	if err := json.Unmarshal(w.Body, &p); err != nil {
		return p, w, fmt.Errorf("reading the progress of node %s: %w", name, err)
	}
	return p, w, nil
}

// A Lag is what a node has not been proven to know yet.
type Lag struct {
	Node     string          `json:"node"`
	Progress Progress        `json:"progress"`
	Endings  []enroll.Ending `json:"-"`
	More     bool            `json:"more,omitempty"` // there are other endings
}

// maxLag is how many endings are listed for one node.
const maxLag = 1000

// Pending says, for each node, which revocations have not been proven there.
func Pending(ctx context.Context, store inventory.Store, nodes []string) ([]Lag, error) {
	var out []Lag
	err := store.Read(ctx, func(in inventory.Reader) error {
		out = out[:0]
		for _, name := range nodes {
			p, _, err := readProgress(in, name)
			if err != nil {
				return err
			}
			l := Lag{Node: name, Progress: p}
			if l.Endings, l.More, err = enroll.Endings(in, p.Revision, maxLag); err != nil {
				return err
			}
			out = append(out, l)
		}
		return nil
	})
	return out, err
}
