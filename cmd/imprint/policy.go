package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
)

func newPolicyCommand(a *app) *cobra.Command {
	return newGroupCommand("policy", "What devices may publish and receive",
		newPolicyExplainCommand(a), newPolicyLintCommand(a))
}

func newPolicyExplainCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "explain ID publish|receive TOPIC",
		Short: "Say whether a device may use a topic, and why",
		Long: `Explain decides as the reference that every export is held to. A device that is
not active may do nothing. The exit code is 0 whether the answer is yes or no.`,
		Example: `  imprint policy explain dev-17 publish devices/dev-17/up/temperature
  imprint policy explain dev-17 receive devices/dev-18/down/x --output json`,
		Args: cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := inventory.ParseDeviceID(args[0])
			if err != nil {
				return err
			}
			action, err := topic.ParseAction(args[1])
			if err != nil {
				return usageError{err}
			}
			name, err := topic.ParseName(args[2])
			if err != nil {
				return err
			}
			f, err := a.readFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			var e topic.Explanation
			err = f.store.Read(cmd.Context(), func(in inventory.Reader) error {
				d, err := in.Device(id)
				if err != nil {
					return err
				}
				p, err := profileNamed(in, d.Profile)
				if err != nil {
					return err
				}
				e = p.Policy.Explain(enroll.Subject(d), action, name)
				if d.State != inventory.Active {
					e.Decision = topic.Decision{Reason: fmt.Sprintf("device %s is %s", d.ID, d.State)}
				}
				return nil
			})
			if err != nil {
				return err
			}
			return a.print(e, func(w io.Writer) { writeExplanation(w, e) })
		},
	}
}

func writeExplanation(w io.Writer, e topic.Explanation) {
	answer := "denied"
	if e.Allowed {
		answer = "allowed by " + e.Rule
	}
	_, _ = fmt.Fprintf(w, "%s: %s\n", answer, e.Reason)
	for _, r := range e.Rules {
		filter := ""
		if r.Filter != "" {
			filter = " = " + r.Filter
		}
		_, _ = fmt.Fprintf(w, "  %s%s: %s\n", r.Rule, filter, r.Reason)
	}
}

// lintView is one finding with the profile it is about.
type lintView struct {
	Profile string `json:"profile"`
	topic.Finding
}

func newPolicyLintCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "lint [FILE...]",
		Short: "Look for rules that are dangerous, or do nothing",
		Long: `Lint reads profiles from files, or those of the fleet. A finding of severity error
makes the exit code 65.`,
		Example: `  imprint policy lint
  imprint policy lint sensor.yaml`,
		RunE: func(cmd *cobra.Command, args []string) error {
			profiles, err := a.profilesToLint(cmd, args)
			if err != nil {
				return err
			}
			bad := 0
			err = a.printRows([]string{"PROFILE", "RULE", "SEVERITY", "CODE", "FINDING"}, func(emit func(any, ...string) error) error {
				for _, p := range profiles {
					for _, x := range p.Policy.Lint() {
						if x.Severity == topic.Error {
							bad++
						}
						if err := emit(lintView{p.Name, x}, p.Name, fmt.Sprint(x.Rule), x.Severity.String(), x.Code, x.Text); err != nil {
							return err
						}
					}
				}
				return nil
			})
			if err == nil && bad > 0 {
				err = &topic.PolicyError{Reason: fmt.Sprintf("%d findings of severity error", bad)}
			}
			return err
		},
	}
}

func (a *app) profilesToLint(cmd *cobra.Command, paths []string) ([]inventory.Profile, error) {
	var profiles []inventory.Profile
	for _, path := range paths {
		p, err := a.readProfileFile(path)
		if err != nil {
			return nil, err
		}
		profiles = append(profiles, p)
	}
	if len(paths) > 0 {
		return profiles, nil
	}
	f, err := a.readFleet(cmd.Context())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	err = f.store.Read(cmd.Context(), func(in inventory.Reader) error {
		for p, err := range in.Profiles() {
			if err != nil {
				return err
			}
			profiles = append(profiles, p)
		}
		return nil
	})
	return profiles, err
}
