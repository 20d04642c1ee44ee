package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/imprint-iot/imprint/enroll/agent"
)

func newAgentCommand(a *app) *cobra.Command {
	var config string
	cmd := newGroupCommand("agent", "Keep the certificate of this device alive",
		newAgentEnrollCommand(a, &config), newAgentRunCommand(a, &config), newAgentStatusCommand(a, &config))
	cmd.Long = `Agent works on a device, not on a fleet: it enrolls the device it runs on, renews its
certificate in time, proves the new one to the broker before the old one ends, and
never leaves the device without a pair that works. imprint-agent is the same in a
small program of its own.

Its configuration is a JSON file:

  {
    "server": "https://enroll.acme.example:8443",
    "trust":  "/etc/imprint/root.pem",
    "device": "dev-17",
    "state":  "/var/lib/imprint-agent",
    "broker": "mqtt.acme.example:8883",
    "hook":   ["systemctl", "reload", "my-client"]
  }

The pair to use is always STATE/current/key.pem and STATE/current/cert.pem.`
	cmd.PersistentFlags().StringVar(&config, "config", "/etc/imprint-agent.json", "`file` with the agent's configuration")
	return cmd
}

func newAgentEnrollCommand(a *app, config *string) *cobra.Command {
	var tokenFile string
	cmd := &cobra.Command{
		Use:   "enroll",
		Short: "Get the first certificate, with a token or a birth certificate",
		Long: `Enroll gets the device its first certificate. It does nothing if there is one.

The token is read from --token-file, or from the credential imprint-token of a systemd
service; without one the configuration has to name a birth certificate.`,
		Example: `  imprint agent enroll --config agent.json --token-file token`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := agent.ReadConfig(*config)
			if err != nil {
				return err
			}
			token, err := agent.ReadToken(tokenFile, os.Getenv("CREDENTIALS_DIRECTORY"))
			if err != nil {
				return err
			}
			s, err := agent.Enroll(cmd.Context(), cfg, a.agentOptions(), token)
			if err != nil {
				return err
			}
			return a.printAgent(s)
		},
	}
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "`file` with the token")
	return cmd
}

func (a *app) agentOptions() agent.Options {
	return agent.Options{Log: slog.New(slog.NewTextHandler(a.err, nil)), Now: a.now}
}

func newAgentRunCommand(a *app, config *string) *cobra.Command {
	return &cobra.Command{
		Use:     "run",
		Short:   "Renew the certificate in time, until told to stop",
		Example: `  imprint agent run --config agent.json`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := agent.ReadConfig(*config)
			if err != nil {
				return err
			}
			err = agent.Run(cmd.Context(), cfg, a.agentOptions())
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		},
	}
}

func newAgentStatusCommand(a *app, config *string) *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Say what the agent does",
		Example: `  imprint agent status --config agent.json --output json`,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			cfg, err := agent.ReadConfig(*config)
			if err != nil {
				return err
			}
			s, err := agent.ReadStatus(cfg)
			if err != nil {
				return fmt.Errorf("the agent has said nothing yet: %w", err)
			}
			return a.printAgent(s)
		},
	}
}

func (a *app) printAgent(s agent.Status) error {
	return a.print(s, func(w io.Writer) {
		_, _ = fmt.Fprintf(w, "device   %s\nstate    %s\n", s.Device, s.State)
		if s.Serial != "" {
			_, _ = fmt.Fprintf(w, "serial   %s\nuntil    %s\n", s.Serial, stamp(s.NotAfter))
		}
		if !s.Next.IsZero() {
			_, _ = fmt.Fprintf(w, "next     %s\n", stamp(s.Next))
		}
		if s.Code != "" {
			_, _ = fmt.Fprintf(w, "error    %s: %s\n", printable(s.Code), printable(s.Error))
		}
		if s.Hint != "" {
			_, _ = fmt.Fprintf(w, "hint     %s\n", s.Hint)
		}
	})
}
