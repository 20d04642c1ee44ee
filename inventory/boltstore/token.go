package boltstore

import (
	"encoding/hex"
	"fmt"
	"iter"
	"slices"

	"github.com/imprint-iot/imprint/inventory"
)

// tokens plans what a change does to tokens and approvals.
func (t *turn) tokens() error {
	c := &t.change
	c.Tokens = slices.Clone(c.Tokens)
	for i := range c.Tokens {
		if err := t.token(&c.Tokens[i]); err != nil {
			return err
		}
	}
	for _, u := range c.TokenUses {
		if err := t.use(u); err != nil {
			return err
		}
	}
	c.Approvals = slices.Clone(c.Approvals)
	for i := range c.Approvals {
		if err := t.approval(&c.Approvals[i]); err != nil {
			return err
		}
	}
	return nil
}

func (t *turn) tokenByHash(hash inventory.Hash) (inventory.Token, bool, error) {
	b, ok, err := t.get(tokenKey(hash))
	if err != nil || !ok {
		return inventory.Token{}, false, err
	}
	x, err := inventory.DecodeToken(b)
	return x, err == nil, err
}

func (t *turn) token(x *inventory.Token) error {
	have, ok, err := t.tokenByHash(x.Hash)
	if err != nil {
		return err
	}
	if err := checkRevision("token "+string(x.ID()), ok, have.Revision, x.Revision); err != nil {
		return err
	}
	if ok {
		if err := inventory.CheckToken(&have, x); err != nil {
			return err
		}
	}
	x.Revision = t.head.revision
	return t.store(tokenKey(x.Hash), x)
}

// use counts one enrollment. The revision of the token moves, so that a
// revocation decided on an older count is decided again.
func (t *turn) use(u inventory.TokenUse) error {
	x, ok, err := t.tokenByHash(u.Token)
	switch {
	case err != nil:
		return err
	case !ok, !x.RevokedAt.IsZero(), !x.Role.Enrolls(), x.Spent():
		return conflict(inventory.TokenSpent, "token "+string((&inventory.Token{Hash: u.Token}).ID()), "")
	}
	x.Uses++
	x.Revision = t.head.revision
	b, err := x.AppendBinary(nil)
	if err != nil {
		return err
	}
	t.digest.AddUse(u)
	return t.put(tokenKey(u.Token), b)
}

func (t *turn) approval(a *inventory.Approval) error {
	key := approvalKey(a.Key)
	b, ok, err := t.get(key)
	if err != nil {
		return err
	}
	var have inventory.Approval
	if ok {
		if have, err = inventory.DecodeApproval(b); err != nil {
			return err
		}
	}
	if err := checkRevision("approval of "+a.Key.String(), ok, have.Revision, a.Revision); err != nil {
		return err
	}
	if ok {
		if err := inventory.CheckApproval(&have, a); err != nil {
			return err
		}
	}
	a.Revision = t.head.revision
	return t.store(key, a)
}

// Token implements [inventory.Reader].
func (r *reader) Token(hash inventory.Hash) (inventory.Token, error) {
	b, ok, err := r.chain.get(tokenKey(hash))
	switch {
	case err != nil:
		return inventory.Token{}, err
	case !ok:
		return inventory.Token{}, fmt.Errorf("token: %w", inventory.ErrNotFound)
	}
	return inventory.DecodeToken(b)
}

// Tokens implements [inventory.Reader].
func (r *reader) Tokens(id inventory.TokenID) iter.Seq2[inventory.Token, error] {
	prefix := []byte{kindToken}
	if id != "" {
		var err error
		if prefix, err = appendTokenID(prefix, id); err != nil {
			return one(inventory.Token{}, err)
		}
	}
	return records(r, prefix, nil, func(_, v []byte) (inventory.Token, error) { return inventory.DecodeToken(v) })
}

// Approval implements [inventory.Reader].
func (r *reader) Approval(k inventory.SPKI) (inventory.Approval, error) {
	b, ok, err := r.chain.get(approvalKey(k))
	switch {
	case err != nil:
		return inventory.Approval{}, err
	case !ok:
		return inventory.Approval{}, fmt.Errorf("approval of %s: %w", k, inventory.ErrNotFound)
	}
	return inventory.DecodeApproval(b)
}

// Approvals implements [inventory.Reader].
func (r *reader) Approvals() iter.Seq2[inventory.Approval, error] {
	return records(r, []byte{kindApproval}, nil, func(_, v []byte) (inventory.Approval, error) { return inventory.DecodeApproval(v) })
}

// appendTokenID appends the octets that a token ID stands for.
func appendTokenID(b []byte, id inventory.TokenID) ([]byte, error) {
	if _, err := inventory.ParseTokenID(string(id)); err != nil {
		return nil, err
	}
	return hex.AppendDecode(b, []byte(id))
}
