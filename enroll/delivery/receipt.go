package delivery

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
)

// A Receipt says what was done at one node to put the inventory in force, and what
// proves it. It is in the audit log.
type Receipt struct {
	Node       string        `json:"node"`
	Target     string        `json:"target"`
	Revision   uint64        `json:"revision"` // of the inventory, now in force
	Began      time.Time     `json:"began"`
	NextUpdate time.Time     `json:"nextUpdate,omitzero"` // when the first CRL of the node lapses
	Took       time.Duration `json:"tookNanoseconds"`
	Steps      []Step        `json:"steps"`
	Ended      []string      `json:"ended"` // devices whose sessions were ended; at most 1,000 of them
	Count      int           `json:"count"` // how many those are
}

// A Step is one thing that was done, with its outcome.
type Step struct {
	Name string        `json:"name"`
	At   time.Duration `json:"atNanoseconds"` // since the receipt began: when it was done
	Note string        `json:"note,omitempty"`
}

// maxNamed is how many devices a receipt names.
const maxNamed = 1000

// receiptAction is the action of the event that holds a receipt.
const receiptAction = "node.sync"

// event is r as an entry of the audit log.
func (r *Receipt) event(actor string, now time.Time) inventory.Event {
	e := inventory.Event{Time: now, Actor: actor, Action: receiptAction}
	e.Objects = append(e.Objects, inventory.Object{Kind: "node", ID: r.Node, Note: fmt.Sprintf("%s, revision %d, %d sessions ended, %s", r.Target, r.Revision, r.Count, r.Took.Round(time.Millisecond))})
	for _, s := range r.Steps {
		e.Objects = append(e.Objects, inventory.Object{Kind: "step", ID: s.Name, Note: strings.TrimSpace(s.At.Round(time.Millisecond).String() + " " + s.Note)})
	}
	for _, id := range r.Ended {
		e.Objects = append(e.Objects, inventory.Object{Kind: "session", ID: id, Note: "ended"})
	}
	return e
}

// ended notes the devices of list.
func (r *Receipt) ended(list []enroll.Ending) {
	r.Count = len(list)
	r.Ended = []string{}
	for i := range list[:min(len(list), maxNamed)] {
		r.Ended = append(r.Ended, string(list[i].Device))
	}
}

// encode is p as the body of a work.
func (p *Progress) encode() ([]byte, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encoding progress: %w", err)
	}
	return b, nil
}

// ReadReceipt takes a receipt out of the event that holds it, and false if it holds
// none. Times are as exact as the log has them: milliseconds.
func ReadReceipt(e *inventory.Event) (Receipt, bool) {
	r := Receipt{Began: e.Time, Steps: []Step{}, Ended: []string{}}
	if e.Action != receiptAction {
		return r, false
	}
	for _, o := range e.Objects {
		switch o.Kind {
		case "node":
			r.Node = o.ID
			parts := strings.Split(o.Note, ", ")
			if len(parts) != 4 {
				return r, false
			}
			r.Target = parts[0]
			_, _ = fmt.Sscanf(parts[1], "revision %d", &r.Revision) // as 0 it is plainly wrong
			_, _ = fmt.Sscanf(parts[2], "%d sessions", &r.Count)
			r.Took, _ = time.ParseDuration(parts[3])
		case "step":
			at, note, _ := strings.Cut(o.Note, " ")
			s := Step{Name: o.ID, Note: note}
			s.At, _ = time.ParseDuration(at)
			r.Steps = append(r.Steps, s)
		case "session":
			r.Ended = append(r.Ended, o.ID)
		}
	}
	return r, r.Node != ""
}
