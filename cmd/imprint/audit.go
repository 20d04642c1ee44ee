package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/imprint-iot/imprint/inventory"
)

func newAuditCommand(a *app) *cobra.Command {
	return newGroupCommand("audit", "Who did what, when and why",
		newAuditListCommand(a), newAuditVerifyCommand(a))
}

func newAuditListCommand(a *app) *cobra.Command {
	var from uint64
	var device, action string
	var limit int
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the entries of the audit log",
		Example: `  imprint audit list --device dev-17
  imprint audit list --from 1000 --limit 50 --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 0 {
				return usageErrorf("--limit %d: want a number that is not negative", limit)
			}
			f, err := a.readFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			n := 0
			return a.printRows([]string{"SEQ", "TIME", "ACTOR", "ACTION", "OBJECTS", "REASON"}, func(emit func(any, ...string) error) error {
				return f.store.Read(cmd.Context(), func(in inventory.Reader) error {
					for e, err := range in.Events(from) {
						if err != nil {
							return err
						}
						if action != "" && e.Action != action || device != "" && !concerns(e, device) {
							continue
						}
						if n++; limit > 0 && n > limit {
							return nil
						}
						if device != "" {
							e.Objects = about(e.Objects, device)
						}
						if err := emit(e, strconv.FormatUint(e.Seq, 10), e.Time.Format(time.RFC3339), e.Actor, e.Action, objectList(e.Objects), e.Reason); err != nil {
							return err
						}
					}
					return nil
				})
			})
		},
	}
	flags := cmd.Flags()
	flags.Uint64Var(&from, "from", 0, "begin with this entry `number`")
	flags.StringVar(&device, "device", "", "only entries about this device `id`, and of them only what is about it")
	flags.StringVar(&action, "action", "", "only entries of this `action`, as device.revoke")
	flags.IntVar(&limit, "limit", 0, "at most so `many`; 0 means all")
	return cmd
}

// concerns reports whether an event names a device.
func concerns(e inventory.Event, device string) bool {
	for _, o := range e.Objects {
		if o.Kind == "device" && strings.EqualFold(o.ID, device) {
			return true
		}
	}
	return false
}

// about picks the objects that are the device, or its own: the entry of a bulk job
// names hundreds of others.
func about(objects []inventory.Object, device string) []inventory.Object {
	var own []inventory.Object
	for _, o := range objects {
		owner, _, _ := strings.Cut(o.ID, "/") // of a password
		if strings.EqualFold(owner, device) || strings.EqualFold(o.Note, device) {
			own = append(own, o)
		}
	}
	return own
}

// objectList names at most three objects: a bulk entry has hundreds.
func objectList(objects []inventory.Object) string {
	const most = 3
	var b strings.Builder
	for i, o := range objects {
		if i == most {
			_, _ = fmt.Fprintf(&b, " and %d more", len(objects)-most)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(o.Kind + " " + o.ID)
	}
	return b.String()
}

func newAuditVerifyCommand(a *app) *cobra.Command {
	var head string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Prove that the audit log is whole",
		Long: `Verify reads the whole log and checks that each entry follows the one before it
and is what was written. It prints the head: the number and the hash of the last
entry. Keep the head elsewhere from time to time; with --head, verify also proves
that the log still has that entry, so that nothing has been cut off since.`,
		Example: `  imprint audit verify
  imprint audit verify --head 1042:5f1d...`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			want, err := parseHead(head)
			if err != nil {
				return err
			}
			f, err := a.readFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			var n uint64
			var last inventory.Hash
			err = f.store.Read(cmd.Context(), func(in inventory.Reader) error {
				n, last, err = inventory.VerifyChain(want.watch(in.Events(1)))
				return err
			})
			if err != nil {
				return err
			}
			if err := want.found(n); err != nil {
				return err
			}
			return a.print(map[string]any{"entries": n, "head": fmt.Sprintf("%d:%s", n, last)}, func(w io.Writer) {
				_, _ = fmt.Fprintf(w, "%d entries, whole; head %d:%s\n", n, n, last)
			})
		},
	}
	cmd.Flags().StringVar(&head, "head", "", "`SEQ:HASH` that an earlier verify has printed")
	return cmd
}
