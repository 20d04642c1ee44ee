package enroll

import (
	"bufio"
	"cmp"
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"slices"

	"github.com/imprint-iot/imprint/inventory"
)

// duplicates finds the lines of a file that share a key, without holding all
// keys: it keeps a hash of each and sorts runs of them through a temporary file.
// Two lines with the same hash are candidates; the caller compares the keys.
type duplicates struct {
	seed   maphash.Seed
	length int // of a run
	run    []sighting
	file   *os.File // runs of that length, each run sorted
	runs   int
}

// A sighting is one key on one line.
type sighting struct {
	hash uint64
	line uint64
}

const (
	runLength    = 1 << 17 // sightings: 2 MiB
	sightingSize = 16      // bytes in the file
)

func newDuplicates() *duplicates {
	return &duplicates{seed: maphash.MakeSeed(), length: runLength}
}

func (d *duplicates) close() {
	if d.file != nil {
		_ = d.file.Close()
	}
}

func (d *duplicates) add(key string, line int) error {
	d.run = append(d.run, sighting{maphash.String(d.seed, key), uint64(line)})
	if len(d.run) < d.length {
		return nil
	}
	return d.spill()
}

func compareSightings(a, b sighting) int {
	return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(a.line, b.line))
}

// spill sorts the present run and moves it to the file. The file holds hashes
// under a secret seed, nothing else; it has no name, so it goes with the process.
func (d *duplicates) spill() error {
	if d.file == nil {
		f, err := os.CreateTemp("", "imprint-*")
		if err != nil {
			return fmt.Errorf("looking for duplicates: %w", err)
		}
		d.file = f
		if err := os.Remove(f.Name()); err != nil {
			return fmt.Errorf("looking for duplicates: %w", err)
		}
	}
	slices.SortFunc(d.run, compareSightings)
	w := bufio.NewWriterSize(d.file, 1<<16)
	var b [sightingSize]byte
	for _, s := range d.run {
		binary.BigEndian.PutUint64(b[:8], s.hash)
		binary.BigEndian.PutUint64(b[8:], s.line)
		if _, err := w.Write(b[:]); err != nil {
			return fmt.Errorf("looking for duplicates: %w", err)
		}
	}
	d.runs++
	d.run = d.run[:0]
	return w.Flush()
}

// candidates returns groups of lines whose keys have the same hash, each in
// ascending order, at most limit lines in all.
func (d *duplicates) candidates(limit int) ([][]int, error) {
	slices.SortFunc(d.run, compareSightings)
	m := mergeHeap{&source{rest: d.run}}
	for i := range d.runs {
		size := int64(d.length) * sightingSize
		m = append(m, &source{r: bufio.NewReader(io.NewSectionReader(d.file, int64(i)*size, size))})
	}
	var groups [][]int
	var group []sighting
	total := 0
	flush := func() {
		if len(group) > 1 && total < limit {
			lines := make([]int, len(group))
			for i, s := range group {
				lines[i] = int(s.line)
			}
			groups = append(groups, lines)
			total += len(lines)
		}
		group = group[:0]
	}
	err := m.each(func(s sighting) {
		if len(group) > 0 && group[0].hash != s.hash {
			flush()
		}
		group = append(group, s)
	})
	flush()
	return groups, err
}

// A source is one sorted run, in memory or in the file.
type source struct {
	head sighting
	rest []sighting
	r    io.Reader
}

// advance moves to the next sighting and reports whether there is one.
func (s *source) advance() (bool, error) {
	if s.r == nil {
		if len(s.rest) == 0 {
			return false, nil
		}
		s.head, s.rest = s.rest[0], s.rest[1:]
		return true, nil
	}
	var b [sightingSize]byte
	if _, err := io.ReadFull(s.r, b[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		return false, fmt.Errorf("looking for duplicates: %w", err)
	}
	s.head = sighting{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
	return true, nil
}

// mergeHeap merges sorted runs.
type mergeHeap []*source

func (m mergeHeap) Len() int           { return len(m) }
func (m mergeHeap) Less(i, j int) bool { return compareSightings(m[i].head, m[j].head) < 0 }
func (m mergeHeap) Swap(i, j int)      { m[i], m[j] = m[j], m[i] }

// Push implements [heap.Interface].
func (m *mergeHeap) Push(x any) { *m = append(*m, x.(*source)) }

// Pop implements [heap.Interface].
func (m *mergeHeap) Pop() any {
	old := *m
	last := old[len(old)-1]
	*m = old[:len(old)-1]
	return last
}

// each calls fn with all sightings in order.
func (m mergeHeap) each(fn func(sighting)) error {
	var live mergeHeap
	for _, s := range m {
		ok, err := s.advance()
		if err != nil {
			return err
		}
		if ok {
			live = append(live, s)
		}
	}
	heap.Init(&live)
	for len(live) > 0 {
		fn(live[0].head)
		ok, err := live[0].advance()
		switch {
		case err != nil:
			return err
		case ok:
			heap.Fix(&live, 0)
		default:
			heap.Pop(&live)
		}
	}
	return nil
}

// idKey is the key under which a device ID is looked for. It cannot be the text
// of a key hash, which has a colon.
func idKey(id inventory.DeviceID) string { return id.Canonical() }

// rejectDuplicates refuses the later ones of rows that name the same device or
// hold the same key.
func (b *bulk) rejectDuplicates(seen *duplicates) error {
	groups, err := seen.candidates(maxRejected)
	if err != nil || len(groups) == 0 {
		return err
	}
	rows := map[int]Row{}
	for _, g := range groups {
		for _, line := range g {
			rows[line] = Row{}
		}
	}
	for row, err := range b.job.Rows() {
		if err != nil {
			return err
		}
		if _, ok := rows[row.Line]; ok {
			rows[row.Line] = row
		}
	}
	for _, g := range groups {
		for i, line := range g[1:] {
			if err := b.rejectTwin(rows[line], rows, g[:i+1]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bulk) rejectTwin(row Row, rows map[int]Row, before []int) error {
	for _, line := range before {
		first := rows[line]
		switch {
		case first.Device.ID.Canonical() == row.Device.ID.Canonical():
			return b.reject(row, &inventory.ConflictError{Why: inventory.Exists, Record: "device " + string(row.Device.ID), Detail: fmt.Sprintf("on line %d", line)})
		case len(row.CSR) > 0 && string(first.CSR) != "":
			return b.reject(row, &inventory.ConflictError{Why: inventory.KeyTaken, Record: "key of device " + string(row.Device.ID), Detail: fmt.Sprintf("on line %d", line)})
		}
	}
	return nil
}
