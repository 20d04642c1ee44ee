package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/delivery"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/templates"
)

// Files of a broker node that imprint works on, in nodes/NAME beside its
// certificate.
const (
	nodeConfigFile = "node.yaml"
	nodeAdminFile  = "admin.json" // the account at the broker that imprint works with
)

// nodeConfig is node.yaml: where a running broker is and how it is told things. A
// person may edit it.
type nodeConfig struct {
	Target          string   `yaml:"target"`
	Version         string   `yaml:"version,omitempty"` // of the broker
	Form            string   `yaml:"form,omitempty"`
	Hosts           []string `yaml:"hosts,omitempty"`            // in its certificate; default those of the fleet's broker
	CertificatePort uint16   `yaml:"certificate-port,omitempty"` // default that of the fleet's broker
	PasswordPort    uint16   `yaml:"password-port,omitempty"`
	Bind            string   `yaml:"bind,omitempty"`    // IP address that the broker listens at
	Address         string   `yaml:"address,omitempty"` // where imprint itself connects; default 127.0.0.1
	Out             string   `yaml:"out"`               // directory of the broker's files
	Dest            string   `yaml:"dest,omitempty"`    // the same as the broker sees it
	Admin           string   `yaml:"admin"`             // socket path or URL
	PIDFile         string   `yaml:"pid-file,omitempty"`
	Unit            string   `yaml:"unit,omitempty"` // of systemd
	ReloadCommand   []string `yaml:"reload-command,omitempty"`
}

// nodeAdmin is admin.json. Verifiers are kept, so that an export of the same fleet
// is the same.
type nodeAdmin struct {
	User      string               `json:"user"`
	Password  string               `json:"password"`
	Verifiers []inventory.Verifier `json:"verifiers,omitempty"`
}

// liveTarget returns the target with a name, if imprint can work on its running
// brokers.
func liveTarget(name string) (templates.LiveTarget, error) {
	var known []string
	for _, t := range targets() {
		l, ok := t.(templates.LiveTarget)
		if !ok {
			continue
		}
		if t.Capabilities().Name == name {
			return l, nil
		}
		known = append(known, t.Capabilities().Name)
	}
	return nil, configErrorf("target %q: imprint can work on running brokers of %s", name, strings.Join(known, ", "))
}

func (c *nodeConfig) check(what string) error {
	if _, err := liveTarget(c.Target); err != nil {
		return configErrorf("%s: %w", what, err)
	}
	if c.Out == "" || !filepath.IsAbs(c.Out) || c.Admin == "" {
		return configErrorf("%s: out must be an absolute path, and admin a socket or a URL", what)
	}
	return nil
}

// over fills in what a node shares with the fleet's broker.
func (c nodeConfig) over(b brokerConfig) nodeConfig {
	if len(c.Hosts) == 0 {
		c.Hosts = b.Hosts
	}
	c.CertificatePort = cmp.Or(c.CertificatePort, b.CertificatePort, templates.DefaultCertificatePort)
	c.PasswordPort = cmp.Or(c.PasswordPort, b.PasswordPort, templates.DefaultPasswordPort)
	c.Address = cmp.Or(c.Address, cmp.Or(c.Bind, "127.0.0.1"))
	return c
}

// nodeNames lists the nodes that imprint works on, sorted.
func (f *fleet) nodeNames() ([]string, error) {
	nodes, err := f.dir.Sub(nodesDir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = nodes.Close() }()
	names, err := nodes.Names()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, name := range names {
		if _, err := nodes.Stat(name + "/" + nodeConfigFile); err == nil {
			out = append(out, name)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	slices.Sort(out)
	return out, nil
}

// openNodes opens the nodes with the given names, or all.
func (f *fleet) openNodes(names []string) (_ []*delivery.Node, err error) {
	all, err := f.nodeNames()
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		names = all
	}
	var nodes []*delivery.Node
	defer func() {
		if err != nil {
			closeNodes(nodes)
		}
	}()
	for _, name := range names {
		if !slices.Contains(all, name) {
			return nil, fmt.Errorf("broker %.64q: %w: imprint broker list names those that there are", name, inventory.ErrNotFound)
		}
		n, err := f.openNode(name)
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

func closeNodes(nodes []*delivery.Node) {
	for _, n := range nodes {
		_ = n.Dir.Close()
		if n.Live.Dir != nil {
			_ = n.Live.Dir.Close()
		}
	}
}

func (f *fleet) nodeDir(name string) (*durable.Dir, error) {
	nodes, err := f.dir.Sub(nodesDir)
	if err != nil {
		return nil, err
	}
	dir, err := nodes.Sub(name)
	return dir, errors.Join(err, nodes.Close())
}

// readNodeConfig reads node.yaml, strictly.
func (f *fleet) readNodeConfig(name string) (nodeConfig, error) {
	var c nodeConfig
	dir, err := f.nodeDir(name)
	if err != nil {
		return c, err
	}
	text, err := dir.ReadFile(nodeConfigFile, maxConfig)
	if err := errors.Join(err, dir.Close()); err != nil {
		return c, configError{err}
	}
	what := filepath.Join(nodesDir, name, nodeConfigFile)
	if err := decodeYAML(what, text, &c); err != nil {
		return c, err
	}
	return c, c.check(what)
}

func (f *fleet) openNode(name string) (_ *delivery.Node, err error) {
	c, err := f.readNodeConfig(name)
	if err != nil {
		return nil, err
	}
	c = c.over(f.cfg.Broker)
	t, err := liveTarget(c.Target)
	if err != nil {
		return nil, err
	}
	n := &delivery.Node{Name: name, Target: t, Address: c.Address, ServerName: c.Hosts[0]}
	defer func() {
		if err != nil && n.Dir != nil {
			closeNodes([]*delivery.Node{n})
		}
	}()
	if n.Dir, err = f.nodeDir(name); err != nil {
		return nil, err
	}
	admin, err := readAdmin(n.Dir)
	if err != nil {
		return nil, err
	}
	if n.Live.Dir, err = durable.CreateDir(c.Out); err != nil {
		return nil, err
	}
	n.Live.Admin, n.Live.User, n.Live.Secret = c.Admin, admin.User, inventory.NewSecret([]byte(admin.Password))
	n.Live.Reload = templates.Reload{PIDFile: c.PIDFile, Unit: c.Unit, Command: c.ReloadCommand}
	signer, err := f.exportKey()
	if err != nil {
		return nil, err
	}
	n.Options = templates.Options{Version: c.Version, Form: c.Form, Dest: c.Dest, Signer: signer, SignerName: exportPublicFile, Warn: f.app.warn}
	n.Broker = func(ctx context.Context) (templates.Node, error) { return f.liveNode(ctx, name, c, admin) }
	return n, nil
}

// liveNode is the broker with its certificate, renewed if that is due.
func (f *fleet) liveNode(ctx context.Context, name string, c nodeConfig, admin nodeAdmin) (templates.Node, error) {
	n := templates.Node{Name: name, Hosts: c.Hosts, Bind: c.Bind, CertificatePort: c.CertificatePort, PasswordPort: c.PasswordPort}
	if len(admin.Verifiers) > 0 {
		n.Admin = &templates.Admin{Socket: c.Admin, Verifiers: admin.Verifiers}
	}
	chain, key, err := f.certified(ctx, brokerConfig{Node: name, Hosts: c.Hosts})
	if err != nil {
		return n, err
	}
	n.ServerChain, n.ServerKey = chain, inventory.NewSecret(key)
	return n, nil
}

func readAdmin(dir *durable.Dir) (nodeAdmin, error) {
	var a nodeAdmin
	text, err := dir.ReadFile(nodeAdminFile, maxPEM)
	if err != nil {
		return a, configError{err}
	}
	if err := json.Unmarshal(text, &a); err != nil || a.User == "" || a.Password == "" {
		return a, configErrorf("%s: want the user name and the password of imprint at the broker", filepath.Join(dir.Path(), nodeAdminFile))
	}
	return a, nil
}

// writeNode makes a node, or changes one. password is that of an account which the
// broker has already; if it is empty, imprint makes one.
func (f *fleet) writeNode(name string, c nodeConfig, user string, password []byte) error {
	nodes, err := f.dir.Sub(nodesDir)
	if err != nil {
		return err
	}
	dir, err := nodes.Mkdir(name)
	if err := errors.Join(err, nodes.Close()); err != nil {
		return err
	}
	admin, err := readAdmin(dir)
	if err != nil || len(password) > 0 {
		secret := inventory.NewSecret(password)
		if len(password) == 0 {
			secret = enroll.NewPassword(0)
		}
		admin = nodeAdmin{User: user, Password: string(secret.Reveal())}
		if len(password) == 0 { // else the broker has the account already
			if admin.Verifiers, err = enroll.Verifiers(secret, nil); err != nil {
				return errors.Join(err, dir.Close())
			}
		}
	}
	text, err := yaml.Marshal(c)
	if err != nil {
		return errors.Join(fmt.Errorf("encoding %s: %w", nodeConfigFile, err), dir.Close())
	}
	body, err := json.Marshal(admin) //nolint:gosec // the file is where the password is kept, mode 0600
	if err != nil {
		return errors.Join(fmt.Errorf("encoding %s: %w", nodeAdminFile, err), dir.Close())
	}
	return errors.Join(dir.WriteFile(nodeAdminFile, body, 0o600), dir.WriteFile(nodeConfigFile, text, 0o600), dir.Close())
}

// syncer returns what brings the nodes of the fleet up to date.
func (f *fleet) syncer(who string) *delivery.Syncer {
	return delivery.NewSyncer(delivery.SyncConfig{
		Registrar: f.Registrar, Store: f.store, Actor: who, Now: f.app.now,
		Fleet: templates.Fleet{Name: f.cfg.Name, TrustDomain: f.cfg.TrustDomain},
		CRLs:  f.deviceCRLs,
		Trust: brokerTrust,
		Roots: func(in inventory.Reader) ([]byte, error) { return trustBundle(in, inventory.RootPurpose) },
	})
}

// brokerTrust is what brokers check devices with.
func brokerTrust(in inventory.Reader) ([]byte, error) {
	return trustBundle(in, inventory.RootPurpose, inventory.DevicePurpose, inventory.FactoryPurpose)
}
