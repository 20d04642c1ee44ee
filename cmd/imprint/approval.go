package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/imprint-iot/imprint/inventory"
)

func newApprovalCommand(a *app) *cobra.Command {
	return newGroupCommand("approval", "Devices that wait for somebody to let them in",
		newApprovalListCommand(a), newApprovalDecideCommand(a, "grant", "Let a device enroll", true),
		newApprovalDecideCommand(a, "deny", "Turn a device away", false))
}

// approvalView is a request as the command line shows it.
type approvalView struct {
	Key     inventory.SPKI          `json:"key"`
	Device  inventory.DeviceID      `json:"device"`
	State   inventory.ApprovalState `json:"state"`
	Asked   string                  `json:"asked"`
	Created time.Time               `json:"created"`
	Decided time.Time               `json:"decided,omitzero"`
}

func newApprovalListCommand(a *app) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the devices that wait",
		Example: `  imprint approval list`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := a.readFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			found, err := f.Approvals(cmd.Context())
			if err != nil {
				return err
			}
			return a.printRows([]string{"DEVICE", "STATE", "SINCE", "ASKED BY", "KEY"}, func(emit func(v any, cells ...string) error) error {
				for _, x := range found {
					if !all && x.State != inventory.ApprovalPending {
						continue
					}
					v := approvalView{x.Key, x.Device, x.State, x.Asked, x.Created, x.Decided}
					if err := emit(v, string(v.Device), v.State.String(), stamp(v.Created), v.Asked, v.Key.String()); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "also those that have been decided")
	return cmd
}

func newApprovalDecideCommand(a *app, verb, short string, grant bool) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   verb + " KEY",
		Short: short,
		Long: short + `. The device asks again by itself, with the same key.

KEY is the text that "imprint approval list" shows. Compare it with what the device
shows: the name of a device is only what it says of itself.`,
		Example: `  imprint approval ` + verb + ` spki-sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := inventory.ParseSPKI(args[0])
			if err != nil {
				return err
			}
			f, err := a.openFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			x, err := f.Approve(cmd.Context(), actor(), reason, key, grant)
			if err != nil {
				return err
			}
			return a.print(approvalView{x.Key, x.Device, x.State, x.Asked, x.Created, x.Decided}, func(w io.Writer) {
				_, _ = fmt.Fprintf(w, "%s: %s\n", x.Device, x.State)
			})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "`text` for the audit log")
	return cmd
}
