package inventory

import "time"

// A Work is long work on the fleet that goes on across restarts: how far a broker
// node is, a rotation, a rollover. It is kept in the store, so that the work and
// the facts that it is about cannot come apart. It is named by kind and name.
type Work struct {
	Kind    string // whose work it is: "node", "rotation"; see the packages under enroll
	Name    string
	Body    []byte    // what the one whose work it is wrote: JSON, at most 64 KiB
	Updated time.Time // UTC, whole seconds

	Revision uint64 // as in [Device]
}

// MaxWorkBody is the longest [Work.Body], in bytes.
const MaxWorkBody = 64 << 10

// Validate reports a field outside its grammar as an [*InvalidError].
func (w *Work) Validate() error {
	if err := parseWord("kind of work", w.Kind); err != nil {
		return err
	}
	if err := parseWord("name of work", w.Name); err != nil {
		return err
	}
	if len(w.Body) == 0 || len(w.Body) > MaxWorkBody || w.Updated.IsZero() {
		return &InvalidError{Field: "work", Value: w.Kind + " " + w.Name, Want: "1 to 65,536 bytes and a time"}
	}
	return nil
}

// AppendBinary appends the stored form of w to b. A time that is not in whole
// seconds is an [*InvalidError].
func (w *Work) AppendBinary(b []byte) ([]byte, error) {
	if err := wholeSeconds("work", w.Updated); err != nil {
		return b, err
	}
	b = appendHeader(b, workRecord, w.Revision)
	b = appendText(b, w.Kind)
	b = appendText(b, w.Name)
	b = appendBytes(b, w.Body)
	return appendTime(b, w.Updated), nil
}

// DecodeWork reads the stored form of work. The result shares no memory with b.
// The error wraps [ErrCorrupt] or [ErrVersion].
func DecodeWork(b []byte) (Work, error) {
	r := reader{b: b}
	var w Work
	w.Revision = r.header(workRecord)
	w.Kind = r.string()
	w.Name = r.string()
	w.Body = r.bytes()
	w.Updated = r.time()
	if err := r.end("work"); err != nil {
		return Work{}, err
	}
	return w, nil
}
