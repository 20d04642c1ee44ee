package storetest

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/imprint-iot/imprint/inventory"

	"pgregory.net/rapid"
)

// sell does to m what c says of tokens and approvals, and reports whether it may.
func (m *model) sell(c inventory.Change) bool {
	for _, x := range c.Tokens {
		have, ok := m.tokens[x.Hash]
		if ok != (x.Revision != 0) || ok && inventory.CheckToken(&have, &x) != nil {
			return false
		}
		x.Revision = m.revision
		m.tokens[x.Hash] = x
	}
	for _, u := range c.TokenUses {
		x, ok := m.tokens[u.Token]
		if !ok || !x.RevokedAt.IsZero() || !x.Role.Enrolls() || x.Uses == x.Limit {
			return false
		}
		x.Uses++
		x.Revision = m.revision
		m.tokens[u.Token] = x
	}
	for _, a := range c.Approvals {
		have, ok := m.asked[a.Key]
		if ok != (a.Revision != 0) || ok && inventory.CheckApproval(&have, &a) != nil {
			return false
		}
		a.Revision = m.revision
		m.asked[a.Key] = a
	}
	for _, w := range c.Works {
		if m.works[w.Name].Revision != w.Revision {
			return false
		}
		w.Revision = m.revision
		m.works[w.Name] = w
	}
	return true
}

// drawToken adds the making, the revocation or the use of a token to c, or a request
// for approval and what becomes of it. Each record is in it once.
func (m *machine) drawToken(r *rapid.T, c *inventory.Change, kind int) {
	name := fmt.Sprintf("t%d", rapid.IntRange(0, 3).Draw(r, "token"))
	fresh := token(name, rapid.Uint32Range(1, 3).Draw(r, "limit"))
	if name == "t0" {
		fresh.Role, fresh.Limit = inventory.OperatorRole, 0
	}
	named := slices.ContainsFunc(c.Tokens, func(x inventory.Token) bool { return x.Hash == fresh.Hash }) ||
		slices.ContainsFunc(c.TokenUses, func(u inventory.TokenUse) bool { return u.Token == fresh.Hash })
	switch {
	case kind == 12 && rapid.Bool().Draw(r, "work"):
		m.drawWork(r, c)
	case kind == 12:
		m.drawApproval(r, c)
	case named:
	case kind == 9:
		x, ok := m.model.tokens[fresh.Hash]
		if !ok {
			x = fresh
		}
		if rapid.IntRange(0, 3).Draw(r, "revoke") == 0 {
			x.RevokedAt = day.Add(time.Duration(rapid.IntRange(0, 1).Draw(r, "hour")) * time.Hour)
		}
		x.Revision = drawRevision(r, x.Revision)
		c.Tokens = append(c.Tokens, x)
	default:
		c.TokenUses = append(c.TokenUses, inventory.TokenUse{Token: fresh.Hash})
	}
}

func (m *machine) drawApproval(r *rapid.T, c *inventory.Change) {
	key := inventory.SPKI(hash("asked %d", rapid.IntRange(0, 2).Draw(r, "key")))
	if slices.ContainsFunc(c.Approvals, func(a inventory.Approval) bool { return a.Key == key }) {
		return
	}
	a, ok := m.model.asked[key]
	if !ok || rapid.IntRange(0, 9).Draw(r, "other") == 0 {
		a.Key, a.Created, a.Device = key, day, inventory.DeviceID(rapid.SampledFrom([]string{"dev-1", "dev-2"}).Draw(r, "device"))
	}
	a.State, a.Decided = rapid.SampledFrom([]inventory.ApprovalState{inventory.ApprovalPending, inventory.ApprovalGranted, inventory.ApprovalDenied}).Draw(r, "state"), day
	if a.State == inventory.ApprovalPending {
		a.Decided = time.Time{}
	}
	a.Revision = drawRevision(r, a.Revision)
	c.Approvals = append(c.Approvals, a)
}

// drawWork adds the beginning of a work to c, or a step of it.
func (m *machine) drawWork(r *rapid.T, c *inventory.Change) {
	name := rapid.SampledFrom([]string{"w1", "w2"}).Draw(r, "name")
	if len(c.Works) > 0 {
		return
	}
	w := inventory.Work{Kind: "node", Name: name, Body: []byte(rapid.SampledFrom([]string{"{}", "{\"revision\":2}"}).Draw(r, "body")), Updated: day}
	w.Revision = drawRevision(r, m.model.works[name].Revision)
	c.Works = append(c.Works, w)
}

// checkTokens compares all tokens and approvals, one by one and in their order.
func (m *machine) checkTokens(r *rapid.T, s inventory.Reader) {
	tokens, err := collect(s.Tokens(""))
	differ(r, "tokens", tokens, sorted(m.model.tokens, func(inventory.Token) bool { return true },
		func(a, b inventory.Token) int { return slices.Compare(a.Hash[:], b.Hash[:]) }), err)
	for _, want := range tokens {
		got, err := s.Token(want.Hash)
		differ(r, "token", got, want, err)
	}
	asked, err := collect(s.Approvals())
	differ(r, "approvals", asked, sorted(m.model.asked, func(inventory.Approval) bool { return true },
		func(a, b inventory.Approval) int { return slices.Compare(a.Key[:], b.Key[:]) }), err)
	works, err := collect(s.Works("node"))
	differ(r, "works", works, sorted(m.model.works, func(inventory.Work) bool { return true },
		func(a, b inventory.Work) int { return strings.Compare(a.Name, b.Name) }), err)
}
