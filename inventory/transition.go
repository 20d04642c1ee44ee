package inventory

import (
	"slices"
	"time"
)

// Validate reports the first record in c that is outside its grammar. A store
// calls it before anything else.
func (c *Change) Validate() error {
	if err := c.Event.Validate(); err != nil {
		return err
	}
	for i := range c.Devices {
		if err := c.Devices[i].Validate(); err != nil {
			return err
		}
	}
	for i := range c.Credentials {
		if err := c.Credentials[i].Validate(); err != nil {
			return err
		}
	}
	for i := range c.Profiles {
		if err := c.Profiles[i].Validate(); err != nil {
			return err
		}
	}
	for i := range c.Tokens {
		if err := c.Tokens[i].Validate(); err != nil {
			return err
		}
	}
	for i := range c.Approvals {
		if err := c.Approvals[i].Validate(); err != nil {
			return err
		}
	}
	for i := range c.Works {
		if err := c.Works[i].Validate(); err != nil {
			return err
		}
	}
	return nil
}

// CheckDevice reports whether next may take the place of have, which is stored.
// The error is a [*ConflictError].
func CheckDevice(have, next *Device) error {
	record := "device " + string(next.ID)
	switch {
	case have.Revision != next.Revision:
		return &ConflictError{Why: Stale, Record: record}
	case have.ID != next.ID, have.Kind != next.Kind, !have.Created.Equal(next.Created):
		return &ConflictError{Why: BadTransition, Record: record, Detail: "identity, kind and date of creation are for ever"}
	case !slices.Contains(mayBecome[have.State], next.State):
		return &ConflictError{Why: BadTransition, Record: record, Detail: "it is " + have.State.String()}
	}
	return nil
}

// CheckCredential reports whether next may take the place of have, which is
// stored. A revoked credential stays revoked, with the date it was first revoked
// on; its reason may only become KeyCompromise. The error is a [*ConflictError].
func CheckCredential(have, next *Credential) error {
	record := have.Kind.String() + " credential of device " + string(have.Device)
	bad := func(detail string) error {
		return &ConflictError{Why: BadTransition, Record: record, Detail: detail}
	}
	switch {
	case have.Revision != next.Revision:
		return &ConflictError{Why: Stale, Record: record}
	case have.Kind == CertificateCredential && string(have.Certificate.DER) != string(next.Certificate.DER):
		return bad("a certificate is for ever")
	case have.State == CredentialRevoked && next.State != CredentialRevoked:
		return bad("it is revoked")
	case have.State == CredentialRevoked && !have.RevokedAt.Equal(next.RevokedAt):
		return bad("the date of revocation is for ever")
	case have.State == CredentialRevoked && have.Reason != next.Reason && next.Reason != KeyCompromise:
		return bad("it is revoked for " + have.Reason.String())
	}
	return nil
}

// CheckIssuer reports whether next may take the place of have, which is stored:
// keys stay and CRL numbers only grow. The error is a [*ConflictError].
func CheckIssuer(have, next *Issuer) error {
	record := "issuer " + next.Name
	switch {
	case have.Revision != next.Revision:
		return &ConflictError{Why: Stale, Record: record}
	case have.SPKI != next.SPKI, have.Purpose != next.Purpose, have.Generation != next.Generation,
		have.KeyID != next.KeyID && have.State != IssuerPending:
		return &ConflictError{Why: BadTransition, Record: record, Detail: "an issuer keeps its key"}
	case next.CRLNumber < have.CRLNumber:
		return &ConflictError{Why: BadTransition, Record: record, Detail: "a CRL number only grows"}
	case next.CRLNumber == have.CRLNumber && !next.CRLThisUpdate.Equal(have.CRLThisUpdate):
		return &ConflictError{Why: BadTransition, Record: record, Detail: "another CRL has this number"}
	case next.CRLThisUpdate.Before(have.CRLThisUpdate):
		return &ConflictError{Why: BadTransition, Record: record, Detail: "thisUpdate never goes back"}
	}
	return nil
}

// Revocation returns the CRL entry of a credential, and whether it has one.
func (c *Credential) Revocation() (Revocation, bool) {
	if c.Kind != CertificateCredential || c.State == CredentialActive {
		return Revocation{}, false
	}
	return Revocation{
		Issuer: c.Certificate.Issuer, Serial: c.Certificate.Serial, Device: c.Device,
		Reason: c.Reason, Time: c.RevokedAt, NotAfter: c.Certificate.NotAfter,
	}, true
}

// UTC cuts t to the form in which records keep times: UTC, whole seconds.
func UTC(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }
