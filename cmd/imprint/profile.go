package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
)

// defaultProfileName is the profile of devices that name none.
const defaultProfileName = "default"

// profileFile is a device profile as a person writes it, in YAML.
type profileFile struct {
	Name        string       `yaml:"name" json:"name"`
	Certificate ca.Config    `yaml:"certificate,omitempty" json:"certificate"`
	Password    passwordFile `yaml:"password,omitempty" json:"password"`
	Topics      []topicFile  `yaml:"topics" json:"topics"`
	Grace       ca.Duration  `yaml:"grace,omitempty" json:"grace,omitempty"` // renewal after expiry
}

type passwordFile struct {
	None    bool     `yaml:"none,omitempty" json:"none,omitempty"`
	Length  uint8    `yaml:"length,omitempty" json:"length,omitempty"`
	Schemes []string `yaml:"schemes,omitempty" json:"schemes,omitempty"`
}

// topicFile is one rule: one of publish and receive.
type topicFile struct {
	Publish string `yaml:"publish,omitempty" json:"publish,omitempty"`
	Receive string `yaml:"receive,omitempty" json:"receive,omitempty"`
	Shared  bool   `yaml:"shared,omitempty" json:"shared,omitempty"`
}

func (p profileFile) profile() (inventory.Profile, error) {
	out := inventory.Profile{Name: p.Name, Password: inventory.PasswordRule{None: p.Password.None, Length: p.Password.Length}, Grace: time.Duration(p.Grace)}
	if p.Certificate.Kind == ca.KindServer {
		return out, &inventory.InvalidError{Field: "certificate kind", Value: string(p.Certificate.Kind), Want: "device or idevid"}
	}
	for _, name := range p.Password.Schemes {
		s, err := inventory.ParseScheme(name)
		if err != nil {
			return out, err
		}
		out.Password.Schemes = append(out.Password.Schemes, s)
	}
	for i, t := range p.Topics {
		r := topic.Rule{Action: topic.Publish, Filter: t.Publish, Shared: t.Shared}
		if t.Receive != "" {
			r.Action, r.Filter = topic.Receive, t.Receive
		}
		if (t.Publish == "") == (t.Receive == "") {
			return out, &topic.PolicyError{Rule: i + 1, Reason: "want one of publish and receive"}
		}
		out.Policy.Rules = append(out.Policy.Rules, r)
	}
	var err error
	out.Certificate, err = json.Marshal(p.Certificate)
	return out, err
}

func newProfileFile(p inventory.Profile) (profileFile, error) {
	cfg, err := enroll.CertificateConfig(p)
	if err != nil {
		return profileFile{}, err
	}
	out := profileFile{Name: p.Name, Certificate: cfg, Password: passwordFile{None: p.Password.None, Length: p.Password.Length}, Topics: []topicFile{}, Grace: ca.Duration(p.Grace)}
	for _, s := range p.Password.Schemes {
		out.Password.Schemes = append(out.Password.Schemes, s.String())
	}
	for _, r := range p.Policy.Rules {
		t := topicFile{Shared: r.Shared}
		if r.Action == topic.Publish {
			t.Publish = r.Filter
		} else {
			t.Receive = r.Filter
		}
		out.Topics = append(out.Topics, t)
	}
	return out, nil
}

// readProfileFile reads a profile and lints its policy.
func (a *app) readProfileFile(path string) (inventory.Profile, error) {
	text, err := a.readIn(path, maxConfig)
	if err != nil {
		return inventory.Profile{}, err
	}
	var file profileFile
	if err := decodeYAML(path, text, &file); err != nil {
		// A profile is data that is brought in, not the configuration of the fleet.
		return inventory.Profile{}, &inventory.InvalidError{Field: "profile", Value: path, Want: strings.TrimPrefix(err.Error(), path+": ")}
	}
	return file.profile()
}

func newProfileCommand(a *app) *cobra.Command {
	return newGroupCommand("profile", "What devices of one model get: certificate, password, topics",
		newProfileListCommand(a), newProfileShowCommand(a), newProfileAddCommand(a))
}

func newProfileListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the profiles",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := a.readFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			return a.printRows([]string{"NAME", "VALIDITY", "PASSWORD", "RULES"}, func(emit func(any, ...string) error) error {
				return f.store.Read(cmd.Context(), func(in inventory.Reader) error {
					for p, err := range in.Profiles() {
						if err != nil {
							return err
						}
						file, err := newProfileFile(p)
						if err != nil {
							return err
						}
						made, err := ca.NewProfile(file.Certificate)
						if err != nil {
							return err
						}
						password := "yes"
						if p.Password.None {
							password = "no"
						}
						if err := emit(file, p.Name, made.Config().Validity.String(), password, fmt.Sprint(len(p.Policy.Rules))); err != nil {
							return err
						}
					}
					return nil
				})
			})
		},
	}
}

// profile returns the profile with the given name.
func profileNamed(in inventory.Reader, name string) (inventory.Profile, error) {
	for p, err := range in.Profiles() {
		if err != nil || p.Name == name {
			return p, err
		}
	}
	return inventory.Profile{}, fmt.Errorf("profile %q: %w", name, inventory.ErrNotFound)
}

func newProfileShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "show NAME",
		Short:   "Show a profile, in the form that add reads",
		Example: `  imprint profile show default > sensor.yaml`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := a.readFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			var file profileFile
			err = f.store.Read(cmd.Context(), func(in inventory.Reader) error {
				p, err := profileNamed(in, args[0])
				if err != nil {
					return err
				}
				file, err = newProfileFile(p)
				return err
			})
			if err != nil {
				return err
			}
			text, err := yaml.Marshal(file)
			if err != nil {
				return err
			}
			return a.print(file, func(w io.Writer) { _, _ = w.Write(text) })
		},
	}
}

func newProfileAddCommand(a *app) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "add FILE...",
		Short: "Add profiles, or change those of the same name",
		Long: `Add reads profiles in YAML ("-" is standard input). A profile that is there
already is replaced; what devices have been issued stays as it is, their topic
rights follow the new policy at the next export.

  name: sensor
  certificate: {validity: 730d, keys: [P-256]}
  password: {length: 32}
  topics:
    - publish: devices/{id}/up/#
    - receive: devices/{id}/down/#
    - receive: news/{group}
      shared: true`,
		Example: `  imprint profile add sensor.yaml gateway.yaml`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var profiles []inventory.Profile
			var errs []error
			for _, path := range args {
				p, err := a.readProfileFile(path)
				profiles = append(profiles, p)
				errs = append(errs, err)
			}
			if err := errors.Join(errs...); err != nil {
				return err
			}
			f, err := a.openFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			stored := []string{}
			for _, p := range profiles {
				if err = f.PutProfile(cmd.Context(), actor(), reason, p); err != nil {
					break
				}
				for _, finding := range p.Policy.Lint() {
					a.warn(fmt.Sprintf("profile %s: %s", p.Name, finding))
				}
				stored = append(stored, p.Name)
			}
			return errors.Join(err, a.print(map[string]any{"stored": stored}, func(w io.Writer) {
				for _, name := range stored {
					_, _ = fmt.Fprintf(w, "profile %s stored\n", name)
				}
			}))
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "`text` for the audit log")
	return cmd
}
