package templates

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/topic"
)

// A Plan is what a target brings to an [Export].
type Plan struct {
	Target  string
	Version string // of the broker, resolved
	Form    string // resolved

	// Files are put in place in this order: what takes rights away comes before
	// what gives them.
	Files []PlanFile

	// Render writes every file of the plan.
	Render func(out *Output) error

	// Parse reads the files back: the target's Parse.
	Parse func(src fs.FS) (View, error)

	// For the manifest: what the broker makes of the files.
	Enforced, NotEnforced []string
	RevocationLatency     string
}

// A PlanFile is one file of a plan.
type PlanFile struct {
	Name string
	Mode fs.FileMode
	Doc  bool // for people: the broker does not read it
}

// An Output takes what a target renders.
type Output struct {
	Devices, Users, Rules int // counted by the target

	files    map[string]*stagedFile
	warnings []string
	warn     func(string)
	err      error
}

// File returns the writer of a file of the plan. Writes are buffered; what goes
// wrong is reported by [Export].
func (o *Output) File(name string) io.Writer {
	f, ok := o.files[name]
	if !ok {
		o.err = errors.Join(o.err, fmt.Errorf("rendering: %s is not in the plan", name))
		return io.Discard
	}
	return f
}

// Warn records a warning for the operator.
func (o *Output) Warn(text string) {
	o.warnings = append(o.warnings, text)
	if o.warn != nil {
		o.warn(text)
	}
}

// Export writes the files of p for v into dst, all of them or none that a broker
// would read: they are written and made durable in a directory beside, read back
// by p.Parse, compared with v, weighed against the export that is there, and put
// in place in the order of the plan, the manifest last. A file that would not
// change is not touched.
//
// A crash leaves every file old or new, never in part; the manifest then does
// not match and the next Export goes on. If files are written as root they are
// given to the owner of dst: Mosquitto 2.0, for one, allows everything to
// everybody when it cannot open its rules.
//
// The error wraps [ErrShrink], [ErrParseBack] or [ErrStale], or is an
// [*EntryError], or comes from v or the disk.
func Export(dst *durable.Dir, v View, o Options, p Plan) (Summary, error) {
	now := o.Now
	if now.IsZero() {
		now = time.Now()
	}
	lock, err := dst.Lock(lockName)
	if err != nil {
		return Summary{}, fmt.Errorf("exporting to %s: %w", dst.Path(), err)
	}
	defer func() { _ = lock.Unlock() }() // the kernel releases it in any case

	s, err := newStage(dst, p.Files)
	if err != nil {
		return Summary{}, fmt.Errorf("exporting to %s: %w", dst.Path(), err)
	}
	defer s.discard()

	out := &Output{files: s.files, warn: o.Warn}
	for _, e := range o.Approximated {
		out.Warn("narrower than the policy: " + e.Error())
	}
	if err := checkCRLs(v.CRLs(), now, out); err != nil {
		return Summary{}, err
	}
	if err := errors.Join(p.Render(out), out.err); err != nil {
		return Summary{}, err
	}
	if err := s.commit(); err != nil {
		return Summary{}, err
	}
	if err := parseBack(v, s.fs(), p); err != nil {
		return Summary{}, err
	}
	if !o.AllowShrink {
		if err := checkShrink(dst, s, p, out.Devices); err != nil {
			return Summary{}, err
		}
	}
	sum := Summary{Devices: out.Devices, Users: out.Users, Rules: out.Rules}
	if err := s.putInPlace(&sum); err != nil {
		return Summary{}, err
	}
	m := newManifest(v, o, p, &sum, now)
	old, err := s.writeManifest(m, o)
	if err != nil {
		return Summary{}, err
	}
	warnLeftOver(old, p, out)
	sum.Warnings = out.warnings
	return sum, nil
}

// parseBack reads what was written and compares it with what was meant.
func parseBack(v View, src fs.FS, p Plan) error {
	got, err := p.Parse(src)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrParseBack, err)
	}
	part, ok := got.(Partial)
	if !ok {
		return fmt.Errorf("%w: target %s reads no Partial view", ErrParseBack, p.Target)
	}
	if err := Compare(v, part); err != nil {
		return fmt.Errorf("%w: %w", ErrParseBack, err)
	}
	return nil
}

// checkShrink refuses an export without devices, or with fewer than half of
// those of the export that is there. If nothing says how many those are, it
// refuses as well.
func checkShrink(dst *durable.Dir, s *stage, p Plan, devices int) error {
	before, err := devicesBefore(s, p)
	if err != nil {
		return fmt.Errorf("%w: the one in %s cannot be read, so nobody knows how many: %w", ErrShrink, dst.Path(), err)
	}
	if before > 0 && 2*devices < before {
		return fmt.Errorf("%w: %d in %s, %d now", ErrShrink, before, dst.Path(), devices)
	}
	return nil
}

// devicesBefore returns how many devices the export that is there has: by its
// manifest or, without one, by its files. No files are no devices.
func devicesBefore(s *stage, p Plan) (int, error) {
	src := s.dst.FS()
	m, err := ReadManifest(src)
	if err == nil {
		return m.Devices, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	if !slices.ContainsFunc(p.Files, func(f PlanFile) bool {
		_, err := fs.Stat(src, f.Name)
		return err == nil && !f.Doc
	}) {
		return 0, nil
	}
	v, err := p.Parse(src)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, err := range v.Entries() {
		if err != nil {
			return 0, err
		}
		n++
	}
	return n, nil
}

// Brokers hash a whole CRL at every TLS handshake: about 60 ns for each entry.
const manyRevocations = 20_000

// checkCRLs refuses a CRL that has expired and warns of one that soon will.
func checkCRLs(crls []CRL, now time.Time, out *Output) error {
	entries := 0
	for _, c := range crls {
		entries += c.Entries
		left := c.NextUpdate.Sub(now)
		switch {
		case left <= 0:
			return fmt.Errorf("CRL %d of %s: %w at %s: a broker would refuse every device",
				c.Number, c.Issuer, ErrStale, c.NextUpdate.UTC().Format(time.RFC3339))
		case left < c.NextUpdate.Sub(c.ThisUpdate)/2:
			out.Warn(fmt.Sprintf("CRL %d of %s is past half of its life: after %s a broker refuses every device",
				c.Number, c.Issuer, c.NextUpdate.UTC().Format(time.RFC3339)))
		}
	}
	if entries > manyRevocations {
		out.Warn(fmt.Sprintf("the CRLs have %d entries: at 100,000 a TLS connection costs a broker 7 ms in place of 1 ms", entries))
	}
	return nil
}

// warnLeftOver names files of an earlier export, in another form, that nothing
// writes any more. They are not removed: a running broker may still read them,
// and Mosquitto 2.0 without its ACL file allows everything.
func warnLeftOver(old *Manifest, p Plan, out *Output) {
	if old == nil {
		return
	}
	var names []string
	for _, f := range old.Files {
		if !slices.ContainsFunc(p.Files, func(g PlanFile) bool { return g.Name == f.Name }) {
			names = append(names, f.Name)
		}
	}
	if len(names) > 0 {
		out.Warn(fmt.Sprintf("left from an earlier export: %s; remove when the broker has been restarted", strings.Join(names, ", ")))
	}
}

func newManifest(v View, o Options, p Plan, sum *Summary, now time.Time) *Manifest {
	m := &Manifest{
		Version: manifestVersion, Target: p.Target, BrokerVersion: p.Version, Form: p.Form,
		Fleet: v.Fleet().Name, Node: v.Node().Name, PolicyRevision: v.Revision(), Created: inventory.UTC(now),
		Devices: sum.Devices, Users: sum.Users, Rules: sum.Rules,
		Enforced: p.Enforced, NotEnforced: p.NotEnforced, RevocationLatency: p.RevocationLatency,
	}
	for _, e := range o.Approximated {
		m.Approximated = append(m.Approximated, e.Error())
	}
	if o.Signer != nil {
		m.SignedBy = o.SignerName
	}
	for _, c := range v.CRLs() {
		if m.CRLNextUpdate.IsZero() || c.NextUpdate.Before(m.CRLNextUpdate) {
			m.CRLNextUpdate = inventory.UTC(c.NextUpdate)
		}
	}
	for _, f := range sum.Files {
		m.Files = append(m.Files, ManifestFile{FileInfo: f, Mode: fmt.Sprintf("%04o", f.Mode.Perm())})
	}
	return m
}

// CheckEntry is the fence between the inventory and a file: it refuses an entry
// that is out of order or has an ID or a filter that is not in its grammar. Prev
// is the ID of the entry before.
func CheckEntry(prev inventory.DeviceID, e *Entry) error {
	if _, err := inventory.ParseDeviceID(string(e.ID)); err != nil {
		return err
	}
	if prev != "" && cmp.Compare(prev.Canonical(), e.ID.Canonical()) >= 0 {
		return &EntryError{e.ID, fmt.Sprintf("comes after %q, out of order or twice", prev)}
	}
	for _, g := range e.Grants {
		if _, err := topic.ParseFilter(string(g.Filter)); err != nil {
			return fmt.Errorf("device %s: %w", e.ID, err)
		}
		if g.Action != topic.Publish && g.Action != topic.Receive {
			return &EntryError{e.ID, "has a right that is neither publish nor receive"}
		}
	}
	return nil
}
