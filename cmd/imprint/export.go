package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imprint-iot/imprint/enroll/delivery"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/aedes"
	"github.com/imprint-iot/imprint/templates/akenza"
	"github.com/imprint-iot/imprint/templates/amqtt"
	"github.com/imprint-iot/imprint/templates/artemis"
	"github.com/imprint-iot/imprint/templates/awsiot"
	"github.com/imprint-iot/imprint/templates/azureiot"
	"github.com/imprint-iot/imprint/templates/emqx"
	"github.com/imprint-iot/imprint/templates/flashmq"
	"github.com/imprint-iot/imprint/templates/hivemq"
	"github.com/imprint-iot/imprint/templates/mochi"
	"github.com/imprint-iot/imprint/templates/mosca"
	"github.com/imprint-iot/imprint/templates/mosquitto"
	"github.com/imprint-iot/imprint/templates/nanomq"
	"github.com/imprint-iot/imprint/templates/nats"
	"github.com/imprint-iot/imprint/templates/rabbitmq"
	"github.com/imprint-iot/imprint/templates/rumqttd"
	"github.com/imprint-iot/imprint/templates/vernemq"
)

// targets lists the brokers that imprint can write for. A broker is one folder
// under templates and one line here.
func targets() []templates.Target {
	return []templates.Target{
		mosquitto.Target{},
		rabbitmq.Target{},
		emqx.Target(),
		hivemq.Target(),
		vernemq.Target(),
		nanomq.Target(),
		nats.Target(),
		flashmq.Target(),
		artemis.Target(),
		aedes.Target(),
		mosca.Target(),
		mochi.Target(),
		amqtt.Target(),
		rumqttd.Target(),
		awsiot.Target(),
		azureiot.Target(),
		akenza.Target(),
	}
}

type exportOptions struct {
	out         string
	version     string
	form        string
	dest        string
	allowShrink bool
	approximate string
	check       bool

	service          string
	serviceTokenFile string
}

func newExportCommand(a *app) *cobra.Command {
	cmd := newGroupCommand("export", "Write what a broker reads", newExportListCommand(a))
	for _, t := range targets() {
		cmd.AddCommand(newExportTargetCommand(a, t))
	}
	return cmd
}

func newExportListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the brokers and what each can enforce",
		Long: `List says of each broker whether it takes an identity from a client certificate,
knows passwords, can ask one connection for both, keeps a client identifier to its
user, refuses a SUBSCRIBE rather than not deliver, reads CRLs, and can end the
session of a revoked device. --output json has the limits of scale, the password
schemes and the bound on revocation, too.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.printRows([]string{"TARGET", "VERSIONS", "FORMS", "CERTIFICATE", "PASSWORD", "BOTH", "CLIENT ID", "SUBSCRIBE", "CRL", "KICK"}, func(emit func(any, ...string) error) error {
				for _, t := range targets() {
					c := t.Capabilities()
					if err := emit(newTargetView(c), c.Name, strings.Join(c.Versions, ","), strings.Join(c.Forms, ","), yesNo(c.CertificateIdentity), yesNo(c.Password), yesNo(c.Both), yesNo(c.ClientIDBinding), yesNo(c.SubscribeControl), yesNo(c.CRL), yesNo(c.LiveKick)); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

// targetView is a broker as the command line shows it.
type targetView struct {
	Name                string   `json:"name"`
	Title               string   `json:"title"`
	Versions            []string `json:"versions"` // the default first
	Forms               []string `json:"forms"`    // the default first
	Schemes             []string `json:"schemes"`  // of passwords, the best first
	CertificateIdentity bool     `json:"certificateIdentity"`
	Password            bool     `json:"password"`
	Both                bool     `json:"both"`
	ClientIDBinding     bool     `json:"clientIdBinding"`
	SubscribeControl    bool     `json:"subscribeControl"`
	CRL                 bool     `json:"crl"`
	LiveKick            bool     `json:"liveKick"`
	Limits              string   `json:"limits"`
	RevocationLatency   string   `json:"revocationLatency"`
}

func newTargetView(c templates.Capabilities) targetView {
	schemes := []string{}
	for _, s := range c.Schemes {
		schemes = append(schemes, s.String())
	}
	return targetView{
		Name: c.Name, Title: c.Title, Versions: c.Versions, Forms: c.Forms, Schemes: schemes, CertificateIdentity: c.CertificateIdentity,
		Password: c.Password, Both: c.Both, ClientIDBinding: c.ClientIDBinding, SubscribeControl: c.SubscribeControl, CRL: c.CRL,
		LiveKick: c.LiveKick, Limits: c.Limits, RevocationLatency: c.RevocationLatency,
	}
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func newExportTargetCommand(a *app, t templates.Target) *cobra.Command {
	var o exportOptions
	c := t.Capabilities()
	cmd := &cobra.Command{
		Use:   c.Name,
		Short: "Write the configuration of " + c.Title,
		Long: fmt.Sprintf(`Export writes what %s needs to let in the active devices of the fleet, and nobody
else: listeners with TLS, trust bundle, CRL, users, topic rights. Every file is
read back and compared before it replaces an older one; if anything is wrong, the
old files stay. A CRL is signed first if one is due.

An export that would lose more than half of the devices of the one that is there
is refused, unless --allow-shrink is given.

A topic rule that this broker cannot enforce exactly is refused, with the reason.
--approximate narrower goes on without such rules: what is exported then allows
less than the policy, never more, and the manifest names each rule.

--check writes nothing and says which files differ from what would be written;
if any does, the exit code is 1.

Forms: %s. Versions: %s. Limits: %s
Revocation: %s`, c.Title, strings.Join(c.Forms, ", "), strings.Join(c.Versions, ", "), c.Limits, c.RevocationLatency),
		Example: fmt.Sprintf(`  imprint export %s --out /etc/mosquitto/imprint
  imprint export %s --out staging --dest /etc/mosquitto/imprint`, c.Name, c.Name),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runExport(cmd.Context(), t, o) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.out, "out", "", "`directory` for the files (required)")
	flags.StringVar(&o.version, "broker-version", c.Versions[0], "`version` of the broker")
	flags.StringVar(&o.form, "form", c.Forms[0], "`form` of the topic rights")
	flags.StringVar(&o.dest, "dest", "", "absolute `path` of the files on the broker's host (default: --out)")
	flags.BoolVar(&o.allowShrink, "allow-shrink", false, "go on when many devices of the last export are missing")
	flags.StringVar(&o.approximate, "approximate", "", "what to do about rules that the broker cannot express: `narrower` leaves them out")
	flags.BoolVar(&o.check, "check", false, "compare the directory with what would be written, and write nothing")
	flags.StringVar(&o.service, "service", "", "`URL` of the running imprint that the broker asks, for a form that does: https://host:port")
	flags.StringVar(&o.serviceTokenFile, "service-token-file", "", "`file` with a token of the role broker, for --service")
	if err := cmd.MarkFlagRequired("out"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

func (a *app) runExport(ctx context.Context, t templates.Target, o exportOptions) (err error) {
	if o.approximate != "" && o.approximate != "narrower" {
		return usageErrorf("--approximate %q: want narrower; nothing makes an export wider than the policy", o.approximate)
	}
	service := templates.Service{URL: o.service}
	if o.serviceTokenFile != "" {
		token, err := readSecretLine(o.serviceTokenFile)
		if err != nil {
			return err
		}
		service.Token = inventory.NewSecret(token)
	}
	f, err := a.openFleet(ctx)
	if err != nil {
		return err
	}
	defer f.Close()
	signer, err := f.exportKey()
	if err != nil {
		return err
	}
	options := templates.Options{
		Version: o.version, Form: o.form, Dest: o.dest, AllowShrink: o.allowShrink, Signer: signer, SignerName: exportPublicFile, Now: a.now(), Warn: a.warn,
		Service: service,
	}
	if o.check {
		return f.checkExport(ctx, t, o, options)
	}
	defer tidyOut(o.out)()
	dst, err := durable.CreateDir(o.out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	summary, err := f.export(ctx, t, dst, options, o.approximate != "")
	if err != nil {
		return err
	}
	return a.print(summaryView(t, dst, summary), func(w io.Writer) {
		what := "unchanged"
		if summary.Changed {
			what = "written"
		}
		_, _ = fmt.Fprintf(w, "%s: %d devices, %d with a password, %d rules; %s in %s\n", t.Capabilities().Title, summary.Devices, summary.Users, summary.Rules, what, dst.Path())
		if summary.Changed {
			_, _ = fmt.Fprintf(w, "reload the broker: %s says how\n", filepath.Join(dst.Path(), "README.md"))
		}
	})
}

func summaryView(t templates.Target, dst *durable.Dir, s templates.Summary) any {
	return map[string]any{
		"target": t.Capabilities().Name, "out": dst.Path(), "devices": s.Devices, "users": s.Users, "rules": s.Rules,
		"changed": s.Changed, "files": s.Files, "warnings": append([]string{}, s.Warnings...),
	}
}

// export brings the CRLs and the broker's certificate up to date and writes the
// fleet as it is at one moment after that. Narrower leaves out the rules that t
// cannot express.
func (f *fleet) export(ctx context.Context, t templates.Target, dst *durable.Dir, o templates.Options, narrower bool) (templates.Summary, error) {
	var summary templates.Summary
	node, err := f.node(ctx)
	if err != nil {
		return summary, err
	}
	crls, err := f.deviceCRLs(ctx)
	if err != nil {
		return summary, err
	}
	err = f.store.Read(ctx, func(in inventory.Reader) error {
		trust, err := trustBundle(in, inventory.RootPurpose, inventory.DevicePurpose, inventory.FactoryPurpose)
		if err != nil {
			return err
		}
		view, err := delivery.NewView(in, delivery.ViewConfig{
			Fleet: templates.Fleet{Name: f.cfg.Name, TrustDomain: f.cfg.TrustDomain}, Node: node, TrustBundle: trust, CRLs: crls, Now: f.app.now(),
		})
		if err != nil {
			return err
		}
		if narrower {
			if view, o.Approximated, err = templates.Narrow(view, templates.OfForm(t, o.Form)); err != nil {
				return err
			}
		}
		summary, err = t.Write(dst, view, o)
		return err
	})
	return summary, err
}

// deviceCRLs returns the CRLs that a broker checks clients with.
func (f *fleet) deviceCRLs(ctx context.Context) ([]templates.CRL, error) {
	issuers, err := f.issuers(ctx)
	if err != nil {
		return nil, err
	}
	var out []templates.CRL
	for _, iss := range issuers {
		if iss.State == inventory.IssuerPending.String() || iss.State == inventory.IssuerRetired.String() || iss.Purpose != inventory.DevicePurpose && iss.Purpose != inventory.FactoryPurpose {
			continue
		}
		crl, err := f.publishCRL(ctx, iss.Name, false)
		if err != nil {
			return nil, err
		}
		out = append(out, templates.CRL(crl))
	}
	return out, nil
}
