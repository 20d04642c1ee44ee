package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/delivery"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/bundle"
	"github.com/imprint-iot/imprint/templates/proof"
)

type verifyOptions struct {
	dir      string
	connect  string
	login    string
	bundles  string
	observer string
	version  int
	sample   int
}

func newBrokerVerifyCommand(a *app) *cobra.Command {
	o := verifyOptions{version: 5, sample: 8}
	cmd := &cobra.Command{
		Use:   "verify TARGET",
		Short: "Prove that a broker decides as the topic policy",
		Long: `Verify reads the files of an export as strictly as the broker does, holds them to
the fleet as it is now, and asks hundreds of questions for a sample of devices: may
dev-1 publish to its own topic, to its neighbour's, to one that differs in a letter,
may it subscribe to more than it may receive. Each answer is compared with the policy.
The questions go to a second reading of that broker's manual, written apart from what
writes the files.

With --connect a running broker is asked as its devices would ask it, in the name of
the devices whose bundles are in --bundles: they connect, subscribe, publish, and die
with a last will. Do that before go-live, or with devices made for it. A message that
a broker acknowledges and throws away can be told only by an --observer, who may
publish and receive everything; without one some answers stay unknown, and are counted.

Nothing may be allowed that the policy does not allow: then the exit code is 1.`,
		Example: `  imprint broker verify mosquitto --dir /etc/mosquitto/imprint
  imprint broker verify mosquitto --dir /etc/mosquitto/imprint --connect mqtt.acme.example:8883 --connect-login mqtt.acme.example:8884 --bundles probes`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.verifyBroker(cmd.Context(), args[0], o) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.dir, "dir", "", "`directory` of the export (required)")
	flags.StringVar(&o.connect, "connect", "", "`HOST:PORT` of the running broker, where devices show a certificate")
	flags.StringVar(&o.login, "connect-login", "", "`HOST:PORT` where devices give user name and password")
	flags.StringVar(&o.bundles, "bundles", "", "`directory` with the bundles of the devices to ask for, each in a folder with its name")
	flags.StringVar(&o.observer, "observer", "", "`directory` with the bundle of an account that may publish and receive everything")
	flags.IntVar(&o.version, "mqtt", o.version, "`version` of MQTT: 5, or 4 for 3.1.1")
	flags.IntVar(&o.sample, "sample", o.sample, "`number` of devices to ask about without --connect")
	if err := cmd.MarkFlagRequired("dir"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

func findTarget(name string) (templates.Target, error) {
	for _, t := range targets() {
		if t.Capabilities().Name == name {
			return t, nil
		}
	}
	return nil, usageErrorf("there is no target %.64q: see imprint export list", name)
}

func (a *app) verifyBroker(ctx context.Context, name string, o verifyOptions) error {
	t, err := findTarget(name)
	if err != nil {
		return err
	}
	live := o.connect != "" || o.login != ""
	switch {
	case o.version != 4 && o.version != 5:
		return usageErrorf("--mqtt %d: want 4 or 5", o.version)
	case live != (o.bundles != ""):
		return usageErrorf("--connect and --connect-login need --bundles, and it needs one of them")
	case o.observer != "" && !live:
		return usageErrorf("--observer needs --connect or --connect-login")
	case o.sample < 1 || o.sample > 1000:
		return usageErrorf("--sample %d: want 1 to 1000", o.sample)
	}
	f, err := a.openFleet(ctx)
	if err != nil {
		return err
	}
	defer f.Close()
	src := os.DirFS(o.dir)
	if err := f.verifyFiles(ctx, t, src); err != nil {
		return err
	}
	var report proof.Report
	if live {
		report, err = f.askBroker(ctx, t, o)
	} else {
		report, err = f.askFiles(ctx, t, src, o.sample)
	}
	if err != nil {
		return err
	}
	return a.printProof(&report)
}

func (a *app) printProof(r *proof.Report) error {
	r.Wider, r.Narrower = append([]proof.Question{}, r.Wider...), append([]proof.Question{}, r.Narrower...)
	err := a.print(r, func(w io.Writer) {
		const shown = 20
		for _, q := range r.Wider[:min(shown, len(r.Wider))] {
			_, _ = fmt.Fprintf(w, "WIDER     %s\n", q)
		}
		for _, q := range r.Narrower[:min(shown, len(r.Narrower))] {
			_, _ = fmt.Fprintf(w, "narrower  %s\n", q)
		}
		_, _ = fmt.Fprintf(w, "%s, %s: %d decisions, %d wider than the policy, %d narrower, %d that cannot be told\n", r.Target, r.How, r.Asked, len(r.Wider), len(r.Narrower), r.Unknown)
	})
	switch {
	case err != nil:
		return err
	case len(r.Wider) > 0:
		return foundError{fmt.Errorf("%s allows what the policy does not: do not let devices in", r.Target)}
	case r.Asked == 0:
		return foundError{errors.New("no question could be answered, so nothing is proven")}
	}
	return nil
}

// verifyFiles holds an export to the fleet as it is now.
func (f *fleet) verifyFiles(ctx context.Context, t templates.Target, src fs.FS) error {
	signer, err := f.exportKey()
	if err != nil {
		return err
	}
	pub, ok := signer.Public().(*ecdsa.PublicKey)
	if !ok {
		return errors.New("the key of exports is not an ECDSA key")
	}
	m, err := templates.Verify(src, pub)
	if err != nil {
		return err
	}
	if m.Target != t.Capabilities().Name {
		return usageErrorf("the files are those of %s, not of %s", m.Target, t.Capabilities().Name)
	}
	got, err := t.Parse(src)
	if err != nil {
		return err
	}
	part, ok := got.(templates.Partial)
	if !ok {
		return fmt.Errorf("target %s reads no Partial view", m.Target)
	}
	err = f.withView(ctx, func(view templates.View) error {
		if len(m.Approximated) > 0 {
			if view, _, err = templates.Narrow(view, templates.OfForm(t, m.Form)); err != nil {
				return err
			}
		}
		return templates.Compare(&ofFiles{View: view, part: part}, part)
	})
	if diff, ok := errors.AsType[*templates.DifferenceError](err); ok {
		return foundError{fmt.Errorf("the files are not those of the fleet as it is now: %w: export again", diff)}
	}
	return err
}

// ofFiles is the fleet with the broker and the CRLs of an export: these are its own,
// and may be older.
type ofFiles struct {
	templates.View
	part templates.Partial
}

// Node implements [templates.View].
func (v *ofFiles) Node() templates.Node { return v.part.Node() }

// CRLs implements [templates.View].
func (v *ofFiles) CRLs() []templates.CRL { return v.part.CRLs() }

// TrustBundle implements [templates.View].
func (v *ofFiles) TrustBundle() []byte { return v.part.TrustBundle() }

// withView reads the fleet as an export sees it, without a broker.
func (f *fleet) withView(ctx context.Context, fn func(templates.View) error) error {
	return f.store.Read(ctx, func(in inventory.Reader) error {
		view, err := delivery.NewView(in, delivery.ViewConfig{Fleet: templates.Fleet{Name: f.cfg.Name, TrustDomain: f.cfg.TrustDomain}, Now: f.app.now()})
		if err != nil {
			return err
		}
		return fn(view)
	})
}

// sample returns devices to ask about, at most n: of each profile in turn, and those
// whose names begin alike.
func (f *fleet) sample(ctx context.Context, n int, wanted []inventory.DeviceID) ([]proof.Device, error) {
	byProfile := map[string][]proof.Device{}
	var order []string
	err := f.store.Read(ctx, func(in inventory.Reader) error {
		policies := map[string]topic.Policy{}
		for p, err := range in.Profiles() {
			if err != nil {
				return err
			}
			policies[p.Name] = p.Policy
			order = append(order, p.Name)
		}
		for d, err := range in.Devices(inventory.Query{}) {
			if err != nil {
				return err
			}
			if d.State != inventory.Active || wanted == nil && len(byProfile[d.Profile]) >= n || wanted != nil && !slices.Contains(wanted, d.ID) {
				continue
			}
			byProfile[d.Profile] = append(byProfile[d.Profile], proof.Device{Subject: enroll.Subject(d), Policy: policies[d.Profile]})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var out []proof.Device
	for i := 0; len(out) < n; i++ {
		before := len(out)
		for _, p := range order {
			if i < len(byProfile[p]) && len(out) < n {
				out = append(out, byProfile[p][i])
			}
		}
		if len(out) == before {
			break
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("active devices to ask about: %w", inventory.ErrNotFound)
	}
	return out, nil
}

// askFiles asks a second reading of the broker's manual.
func (f *fleet) askFiles(ctx context.Context, t templates.Target, src fs.FS, n int) (proof.Report, error) {
	devices, err := f.sample(ctx, n, nil)
	if err != nil {
		return proof.Report{}, err
	}
	var e proof.Evaluator
	if second, ok := t.(interface {
		Evaluator(fs.FS) (proof.Evaluator, error)
	}); ok {
		if e, err = second.Evaluator(src); err != nil {
			return proof.Report{}, err
		}
	}
	how := "second reading"
	if e == nil {
		how = "files"
		view, err := t.Parse(src)
		if err != nil {
			return proof.Report{}, err
		}
		if e, err = newGrantsOf(view, devices); err != nil {
			return proof.Report{}, err
		}
	}
	r, err := proof.Evaluate(t.Capabilities().Name, e, proof.Questions(devices))
	r.How = how
	return r, err
}

// grantsOf decides by the rights that an export gives to devices.
type grantsOf map[string][]topic.Grant

func newGrantsOf(v templates.View, devices []proof.Device) (grantsOf, error) {
	g := grantsOf{}
	for e, err := range v.Entries() {
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(devices, func(d proof.Device) bool { return d.ID() == string(e.ID) }) {
			g[string(e.ID)] = e.Grants
		}
	}
	return g, nil
}

// Answer implements [proof.Evaluator].
func (g grantsOf) Answer(q proof.Question) (proof.Answer, error) {
	grants, named := g[q.Device]
	if !named {
		return proof.Unknown, nil // what holds for everybody names nobody
	}
	for _, r := range grants {
		switch {
		case q.Verb == proof.Subscribe && r.Action == topic.Receive && r.Filter.Covers(topic.Filter(q.Topic)),
			q.Verb == proof.Receive && r.Action == topic.Receive && r.Filter.Match(topic.Name(q.Topic)),
			(q.Verb == proof.Publish || q.Verb == proof.Will || q.Verb == proof.Retain) && r.Action == topic.Publish && r.Filter.Match(topic.Name(q.Topic)):
			return proof.Allowed, nil
		}
	}
	return proof.Denied, nil
}

// askBroker asks a running broker.
func (f *fleet) askBroker(ctx context.Context, t templates.Target, o verifyOptions) (proof.Report, error) {
	names, err := os.ReadDir(o.bundles)
	if err != nil {
		return proof.Report{}, err
	}
	var ids []inventory.DeviceID
	for _, n := range names {
		if id, err := inventory.ParseDeviceID(n.Name()); err == nil && n.IsDir() {
			ids = append(ids, id)
		}
	}
	const most = 32 // each one is asked about the topics of all
	devices, err := f.sample(ctx, most, ids)
	if err != nil {
		return proof.Report{}, err
	}
	b := &proof.Broker{Target: t.Capabilities().Name, Certificates: o.connect, Passwords: o.login, Version: o.version, Roots: x509.NewCertPool()}
	for i := range devices {
		if err := readCredentials(filepath.Join(o.bundles, devices[i].ID()), &devices[i], b.Roots); err != nil {
			return proof.Report{}, err
		}
	}
	if o.observer != "" {
		b.Observer = &proof.Device{Subject: topic.Subject{ID: filepath.Base(filepath.Clean(o.observer))}}
		if err := readCredentials(o.observer, b.Observer, b.Roots); err != nil {
			return proof.Report{}, err
		}
	}
	if b.ServerName, err = serverName(o.connect, o.login); err != nil {
		return proof.Report{}, err
	}
	if !t.Capabilities().SubscribeControl {
		b.Skip = func(q proof.Question) string {
			if q.Verb == proof.Subscribe {
				return "it grants every SUBSCRIBE, and delivers what may be received"
			}
			return ""
		}
	}
	r, err := b.Ask(ctx, devices, proof.Questions(devices))
	r.How = "running broker"
	if err != nil {
		return r, fmt.Errorf("%w: %w", templates.ErrUnreachable, err)
	}
	return r, nil
}

// readCredentials reads what a device connects with from its bundle.
func readCredentials(dir string, d *proof.Device, roots *x509.CertPool) error {
	trust, err := os.ReadFile(filepath.Join(dir, bundle.TrustFile))
	if err != nil {
		return err
	}
	if !roots.AppendCertsFromPEM(trust) {
		return fmt.Errorf("%s: no certificate in it", filepath.Join(dir, bundle.TrustFile))
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, bundle.ChainFile), filepath.Join(dir, bundle.KeyFile))
	switch {
	case err == nil:
		d.Certificate = &pair
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("bundle %s: %w", dir, err)
	}
	password, err := os.ReadFile(filepath.Join(dir, bundle.PasswordFile))
	switch {
	case err == nil:
		d.Password = bytes.TrimSpace(password)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if d.Certificate == nil && len(d.Password) == 0 {
		return fmt.Errorf("bundle %s: neither key nor password: %w", dir, inventory.ErrNotFound)
	}
	return nil
}

// serverName is the host of the addresses, which is one.
func serverName(addresses ...string) (string, error) {
	name := ""
	for _, a := range addresses {
		if a == "" {
			continue
		}
		host, _, err := net.SplitHostPort(a)
		if err != nil {
			return "", usageErrorf("%.128q: want HOST:PORT", a)
		}
		if name != "" && host != name {
			return "", usageErrorf("--connect and --connect-login are two hosts: verify them one after the other")
		}
		name = host
	}
	return name, nil
}
