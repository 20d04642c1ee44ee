package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"

	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/enroll/client"
)

// followBundle takes over a new trust bundle, once a day. A failure waits until the
// next day: what is trusted now goes on being so.
func (a *agent) followBundle(ctx context.Context) {
	now := a.clock.now()
	if now.Sub(a.bundled) < bundleEvery {
		return
	}
	a.bundled = now
	var answer client.Answer[[]byte]
	err := a.clock.try(ctx, func(ctx context.Context) error {
		c, err := a.clientWith(nil)
		if err != nil {
			return err
		}
		answer, err = c.TrustBundle(ctx)
		return err
	})
	if err == nil {
		a.clock.saw(answer.Date)
		err = a.takeBundle(answer.Value)
	}
	if err == nil {
		err = a.reportTrust(ctx)
	}
	if err != nil {
		a.log.Warn("trust bundle not taken", slog.Any("err", err))
	}
}

// followOrders asks whether the server wants a new pair before it is due. That it
// cannot be asked is nothing: what is due is done in any case.
func (a *agent) followOrders(ctx context.Context, n int) {
	c, err := a.client(n)
	if err != nil {
		return
	}
	answer, err := c.Orders(ctx)
	if err != nil {
		a.log.Debug("orders not asked for", slog.Any("err", err))
		return
	}
	a.clock.saw(answer.Date)
	a.told = answer.Value.Renew
	if a.told {
		a.log.Info("told to renew", slog.Any("rotation", answer.Value.Rotation))
	}
}

// reportTrust tells the server which roots the device trusts, so that it knows when
// a root may go.
func (a *agent) reportTrust(ctx context.Context) error {
	n, err := current(a.dir)
	if err != nil || n == 0 {
		return err
	}
	return a.clock.try(ctx, func(ctx context.Context) error {
		c, err := a.client(n)
		if err != nil {
			return err
		}
		answer, err := c.Report(ctx, api.StatusReport{Version: api.StatusVersion, Status: true, Trust: a.trusts()})
		a.clock.saw(answer.Date)
		return err
	})
}

// maxTrusts is how many fingerprints a report has at most.
const maxTrusts = 16

// trusts are the fingerprints of what is trusted. Without any the report says
// nothing of it.
func (a *agent) trusts() []string {
	_, text, err := roots(a.dir, a.cfg.Trust)
	if err != nil {
		return nil
	}
	all, err := parseBundle(text)
	if err != nil {
		return nil
	}
	var out []string
	for _, c := range all[:min(len(all), maxTrusts)] {
		out = append(out, fmt.Sprintf("%x", sha256.Sum256(c.Raw)))
	}
	return out
}

// takeBundle stores a bundle if every certificate in it is trusted already or is
// signed by one that is, so that a stolen server certificate adds no root; and if
// it keeps one of those that are trusted.
func (a *agent) takeBundle(next []byte) error {
	_, have, err := roots(a.dir, a.cfg.Trust)
	if err != nil || bytes.Equal(have, next) {
		return err
	}
	trusted, err := parseBundle(have)
	if err != nil {
		return err
	}
	wanted, err := parseBundle(next)
	if err != nil {
		return err
	}
	var out []byte
	for _, c := range wanted {
		if !vouched(c, trusted, wanted) {
			return fmt.Errorf("root %.100q is vouched for by none that is trusted", c.Subject.String())
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	if len(out) == 0 {
		return errors.New("it is empty")
	}
	return a.dir.WriteFile(trustFile, out, 0o600)
}

// vouched reports whether c is trusted, or there is a certificate for its key that
// a trusted root has signed (a link certificate, RFC 4210 §4.4).
func vouched(c *x509.Certificate, trusted, wanted []*x509.Certificate) bool {
	for _, t := range trusted {
		if t.Equal(c) || c.CheckSignatureFrom(t) == nil {
			return true
		}
		for _, link := range wanted {
			if bytes.Equal(link.RawSubjectPublicKeyInfo, c.RawSubjectPublicKeyInfo) && link.CheckSignatureFrom(t) == nil {
				return true
			}
		}
	}
	return false
}

func parseBundle(text []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for rest := text; len(bytes.TrimSpace(rest)) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" || len(all) == 64 {
			return nil, errors.New("a trust bundle is certificates in PEM")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("reading the trust bundle: %w", err)
		}
		all = append(all, c)
	}
	return all, nil
}
