package templates

import (
	"bytes"
	"cmp"
	"fmt"
	"iter"
	"slices"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
)

// Compare reports the first difference between want and what got, read back
// from files, says of it. It holds one entry of each at a time, so the size of
// the fleet does not matter. A difference is a [*DifferenceError].
func Compare(want View, got Partial) error {
	omits := got.Omits()
	if !omits.Trust && !bytes.Equal(want.TrustBundle(), got.TrustBundle()) {
		return &DifferenceError{What: "trust bundle"}
	}
	if !omits.CRLs && !sameCRLs(want.CRLs(), got.CRLs()) {
		return &DifferenceError{What: "CRLs"}
	}
	if what := nodeDifference(want.Node(), got.Node()); what != "" && !omits.Node {
		return &DifferenceError{What: what}
	}
	next, stop := iter.Pull2(got.Entries())
	defer stop()
	for e, err := range want.Entries() {
		if err != nil {
			return err
		}
		carried, ok := got.Carry(e)
		if !ok {
			continue
		}
		have, err, ok := next()
		switch {
		case err != nil:
			return err
		case !ok:
			return &DifferenceError{What: "device", ID: e.ID, Detail: "is missing"}
		case have.ID != carried.ID:
			return &DifferenceError{What: "device", ID: e.ID, Detail: fmt.Sprintf("has %.128q in its place", have.ID)}
		}
		if detail := entryDifference(&carried, &have); detail != "" {
			return &DifferenceError{What: "device", ID: e.ID, Detail: detail}
		}
	}
	have, err, ok := next()
	switch {
	case err != nil:
		return err
	case ok:
		return &DifferenceError{What: "device", ID: have.ID, Detail: "should not be there"}
	}
	return nil
}

// sameCRLs compares lists in any order: where each is a file of its own, there is none.
func sameCRLs(a, b []CRL) bool {
	sorted := func(l []CRL) []CRL {
		return slices.SortedFunc(slices.Values(l), func(x, y CRL) int { return bytes.Compare(x.DER, y.DER) })
	}
	return slices.EqualFunc(sorted(a), sorted(b), func(x, y CRL) bool { return bytes.Equal(x.DER, y.DER) })
}

// A DifferenceError says where files differ from the fleet.
type DifferenceError struct {
	What   string // "device", "trust bundle"
	ID     inventory.DeviceID
	Detail string
}

// Error names the first thing that differs. Secrets are not shown.
func (e *DifferenceError) Error() string {
	if e.ID == "" {
		return e.What + " differs"
	}
	return fmt.Sprintf("%s %.128q %s", e.What, e.ID, e.Detail)
}

// nodeDifference says what of two nodes differs, in words, or nothing. Name and
// hosts are in no file but the certificate.
func nodeDifference(a, b Node) string {
	switch {
	case !bytes.Equal(a.ServerChain, b.ServerChain):
		return "server certificate"
	case !bytes.Equal(a.ServerKey.Reveal(), b.ServerKey.Reveal()):
		return "server key"
	case a.Bind != b.Bind,
		cmp.Or(a.CertificatePort, DefaultCertificatePort) != cmp.Or(b.CertificatePort, DefaultCertificatePort),
		cmp.Or(a.PasswordPort, DefaultPasswordPort) != cmp.Or(b.PasswordPort, DefaultPasswordPort):
		return "listening address"
	case !sameAdmin(a.Admin, b.Admin):
		return "account of the local administrator"
	}
	return ""
}

// sameAdmin compares where the administrator connects. Which verifiers a target
// reads is its own affair, so of those only that there are some counts.
func sameAdmin(a, b *Admin) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Socket == b.Socket && (len(a.Verifiers) > 0) == (len(b.Verifiers) > 0)
}

func entryDifference(a, b *Entry) string {
	if !slices.EqualFunc(a.Verifiers, b.Verifiers, sameVerifier) {
		return "has another password"
	}
	if !slices.EqualFunc(a.Grants, b.Grants, SameGrant) && !slices.EqualFunc(SortGrants(a.Grants), SortGrants(b.Grants), SameGrant) {
		return "has other rights"
	}
	return ""
}

func sameVerifier(a, b inventory.Verifier) bool {
	return a.Scheme == b.Scheme && a.Iterations == b.Iterations && bytes.Equal(a.Salt, b.Salt) && bytes.Equal(a.Hash, b.Hash)
}

// SameGrant reports whether two grants allow the same, whatever rules they come
// from.
func SameGrant(a, b topic.Grant) bool { return a.Action == b.Action && a.Filter == b.Filter }

// SortGrants returns the grants ordered by filter and action, each once.
func SortGrants(g []topic.Grant) []topic.Grant {
	g = slices.SortedFunc(slices.Values(g), func(a, b topic.Grant) int {
		return cmp.Or(cmp.Compare(a.Filter, b.Filter), cmp.Compare(a.Action, b.Action))
	})
	return slices.CompactFunc(g, SameGrant)
}
