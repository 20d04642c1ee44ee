package main

import (
	"iter"
	"strconv"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
)

// auditHead is an entry that the audit log is known to have had.
type auditHead struct {
	seq  uint64
	hash string
	seen bool
}

func parseHead(text string) (*auditHead, error) {
	if text == "" {
		return &auditHead{}, nil
	}
	seq, hash, ok := strings.Cut(text, ":")
	n, err := strconv.ParseUint(seq, 10, 64)
	if !ok || err != nil || n == 0 || len(hash) != 2*len(inventory.Hash{}) {
		return nil, usageErrorf("--head %.100q: want SEQ:HASH, as verify prints it", text)
	}
	return &auditHead{seq: n, hash: strings.ToLower(hash)}, nil
}

// watch looks out for the entry as events pass by.
func (h *auditHead) watch(events iter.Seq2[inventory.Event, error]) iter.Seq2[inventory.Event, error] {
	return func(yield func(inventory.Event, error) bool) {
		for e, err := range events {
			if err == nil && e.Seq == h.seq && e.Hash.String() == h.hash {
				h.seen = true
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

// found reports that a log of n entries does not have the entry.
func (h *auditHead) found(n uint64) error {
	switch {
	case h.seq == 0 || h.seen:
		return nil
	case h.seq > n:
		return &inventory.ChainError{Seq: n + 1, Why: "missing: the log has been cut off"}
	}
	return &inventory.ChainError{Seq: h.seq, Why: "is not the entry of that head: this is another log"}
}
