package rabbitmq

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
)

// Connect implements [templates.LiveTarget]. Live.Admin is the URL of the management
// API and Live.User an administrator there.
//
// A user that is deleted loses its sessions at once, whatever they were opened with,
// and cannot come back; that is most of a revocation. The CRL, which is read at every
// handshake, is what stops a certificate whose device is still a user.
func (t Target) Connect(l templates.Live) (templates.Driver, error) {
	u, err := url.Parse(l.Admin)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.User != nil {
		return nil, &inventory.InvalidError{Field: "administration", Value: l.Admin, Want: "an http or https URL"}
	}
	if l.Dir == nil || l.User == "" || l.Secret.IsZero() {
		return nil, errors.New("rabbitmq: a live broker needs a directory, a user name and a password")
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}, MaxIdleConnsPerHost: 8, IdleConnTimeout: 10 * time.Second}
	if len(l.Trust) > 0 {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(l.Trust) {
			return nil, errors.New("rabbitmq: no certificate to trust the management API with")
		}
		transport.TLSClientConfig.RootCAs = pool
	}
	if l.Timeout == 0 {
		l.Timeout = 10 * time.Second
	}
	return &driver{target: t, live: l, base: strings.TrimSuffix(u.String(), "/") + "/api/", http: &http.Client{Transport: transport, Timeout: l.Timeout}}, nil
}

// A driver works on one running RabbitMQ.
type driver struct {
	target Target
	live   templates.Live
	base   string // URL, with "/api/"
	http   *http.Client
}

// maxAnswer is the longest answer that is read, in bytes: a page of users, or all
// permissions of 200,000 users.
const maxAnswer = 128 << 20

// A statusError is an answer that is no success.
type statusError struct {
	method, path string
	code         int
}

// Error names what was asked, and never who asked with which password.
func (e *statusError) Error() string {
	return fmt.Sprintf("management API: %s %s: HTTP status %d", e.method, e.path, e.code)
}

// call asks the API. body and answer may be nil.
func (d *driver) call(ctx context.Context, method, path string, body, answer any) error {
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("encoding request: %w", err)
		}
		in = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, d.base+path, in)
	if err != nil {
		return fmt.Errorf("management API: %w", err)
	}
	req.SetBasicAuth(d.live.User, string(d.live.Secret.Reveal()))
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := d.http.Do(req)
	if err != nil {
		return fmt.Errorf("%w: %w", templates.ErrUnreachable, err)
	}
	defer func() { _ = res.Body.Close() }() // read to its end, or of no use
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", templates.ErrUnreachable, err)
	case res.StatusCode == http.StatusUnauthorized || res.StatusCode == http.StatusForbidden:
		return fmt.Errorf("%w: user %s may not administer it (HTTP status %d)", templates.ErrUnreachable, d.live.User, res.StatusCode)
	case res.StatusCode >= 300:
		return &statusError{method, path, res.StatusCode}
	case answer == nil:
		return nil
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return fmt.Errorf("management API: reading the answer to %s: %w", path, err)
	}
	return nil
}

// Deliver implements [templates.Driver]: the files, then the database: first who is
// gone, then rights that are other, then who is new.
func (d *driver) Deliver(ctx context.Context, v templates.View, o templates.Options) (templates.Summary, error) {
	sum, err := d.target.Write(d.live.Dir, v, o)
	if err != nil {
		return sum, err
	}
	x, err := d.target.newExport(d.live.Dir, v, o)
	if err != nil {
		return sum, err
	}
	have, err := d.state(ctx)
	if err != nil {
		return sum, err
	}
	var changed []account
	if err := x.accounts(func(a account) error {
		h, ok := have[a.user.Name]
		delete(have, a.user.Name)
		if a.user.Name != d.live.User && (!ok || !h.same(a)) {
			changed = append(changed, a)
		}
		return nil
	}); err != nil {
		return sum, err
	}
	for name, h := range have {
		if name == d.live.User || len(h.user.Tags) > 0 {
			continue // a person's account, or our own: not a device
		}
		if err := d.remove(ctx, name); err != nil {
			return sum, err
		}
		sum.Changed = true
	}
	for batch := range slices.Chunk(changed, importBatch) {
		if err := d.put(ctx, batch); err != nil {
			return sum, err
		}
		sum.Changed = true
	}
	return sum, nil
}

// importBatch is how many users are imported in one request: a second's work.
const importBatch = 500

// same reports whether the broker has an account as it is meant.
func (a *account) same(b account) bool {
	return a.user.Hash == b.user.Hash && (a.user.Hash == "" || a.user.Hashing == b.user.Hashing) && slices.Equal(a.user.Tags, b.user.Tags) && a.perms == b.perms && a.topics == b.topics
}

// state reads all users with their rights. A user with rights that imprint does not
// give, in another vhost or exchange, is not the same as any.
func (d *driver) state(ctx context.Context) (map[string]*account, error) {
	var users []userRecord
	var perms []permissionRecord
	var topics []topicRecord
	for path, into := range map[string]any{"users?columns=name,password_hash,hashing_algorithm,tags": &users, "permissions": &perms, "topic-permissions": &topics} {
		if err := d.call(ctx, http.MethodGet, path, nil, into); err != nil {
			return nil, err
		}
	}
	have := make(map[string]*account, len(users))
	for _, u := range users {
		have[u.Name] = &account{user: u}
	}
	for _, p := range perms {
		if a := have[p.User]; a != nil && a.perms == (permissionRecord{}) {
			a.perms = p
		} else if a != nil {
			a.perms.Vhost = "several"
		}
	}
	for _, p := range topics {
		if a := have[p.User]; a != nil && a.topics == (topicRecord{}) {
			a.topics = p
		} else if a != nil {
			a.topics.Vhost = "several"
		}
	}
	return have, nil
}

func (d *driver) remove(ctx context.Context, name string) error {
	err := d.call(ctx, http.MethodDelete, "users/"+url.PathEscape(name), nil, nil)
	if s, ok := errors.AsType[*statusError](err); ok && s.code == http.StatusNotFound {
		return nil
	}
	return err
}

// put imports accounts. Rights that are there in another vhost or exchange go with
// the user, who is made anew: an import only adds.
func (d *driver) put(ctx context.Context, accounts []account) error {
	var defs struct {
		Users  []userRecord       `json:"users"`
		Perms  []permissionRecord `json:"permissions"`
		Topics []topicRecord      `json:"topic_permissions"`
	}
	for _, a := range accounts {
		defs.Users, defs.Perms, defs.Topics = append(defs.Users, a.user), append(defs.Perms, a.perms), append(defs.Topics, a.topics)
	}
	return d.call(ctx, http.MethodPost, "definitions", defs, nil)
}

// Reload implements [templates.Driver]: RabbitMQ reads CRLs at every handshake. A new
// certificate of the server it finds within two minutes by itself.
func (d *driver) Reload(context.Context) error { return nil }

// Kick implements [templates.Driver].
func (d *driver) Kick(ctx context.Context, ids []inventory.DeviceID) error {
	for _, id := range ids {
		err := d.call(ctx, http.MethodDelete, "connections/username/"+url.PathEscape(string(id)), nil, nil)
		if s, ok := errors.AsType[*statusError](err); ok && s.code == http.StatusNotFound {
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Live implements [templates.Driver], from the connections that the broker tracks,
// which it does without delay.
func (d *driver) Live(ctx context.Context, ids []inventory.DeviceID) ([]inventory.DeviceID, error) {
	var live []inventory.DeviceID
	for _, id := range ids {
		var connections []struct {
			Name string `json:"name"`
		}
		err := d.call(ctx, http.MethodGet, "connections/username/"+url.PathEscape(string(id)), nil, &connections)
		if s, ok := errors.AsType[*statusError](err); ok && s.code == http.StatusNotFound {
			continue
		}
		if err != nil {
			return nil, err
		}
		if len(connections) > 0 {
			live = append(live, id)
		}
	}
	return live, nil
}

// Close implements [templates.Driver].
func (d *driver) Close() error {
	d.http.CloseIdleConnections()
	return nil
}
