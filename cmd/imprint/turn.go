package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/imprint-iot/imprint/enroll/delivery"
	"github.com/imprint-iot/imprint/inventory"
)

// A selection says which devices a command is about: those named, and those of a
// file, a group or a token.
type selection struct {
	file, group, token string
	certificates       []string // serial numbers; only revoke has them
}

func (s *selection) addFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&s.file, "file", "", "`file` with one id on each line; - is standard input")
	flags.StringVar(&s.group, "group", "", "all devices of this `group`")
	flags.StringVar(&s.token, "token", "", "all devices that were enrolled with the token of this `id`")
}

// maxIDFile is the longest file of ids, in bytes: a million of the longest.
const maxIDFile = 65 << 20

// devices returns the devices that are meant.
func (s *selection) devices(ctx context.Context, f *fleet, args []string) ([]inventory.DeviceID, error) {
	ids, err := parseIDs(args)
	if err != nil {
		return nil, err
	}
	if s.file != "" {
		text, err := f.app.readIn(s.file, maxIDFile)
		if err != nil {
			return nil, err
		}
		listed, err := readIDs(s.file, text)
		if err != nil {
			return nil, err
		}
		ids = append(ids, listed...)
	}
	if s.token != "" {
		t, err := f.FindToken(ctx, inventory.TokenID(s.token))
		if err != nil {
			return nil, err
		}
		bought, err := f.BoughtWith(ctx, t)
		if err != nil {
			return nil, err
		}
		ids = append(ids, bought...)
	}
	if s.group != "" {
		found, err := f.Devices(ctx, inventory.Query{Group: s.group})
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			return nil, fmt.Errorf("group %s: no device: %w", s.group, inventory.ErrNotFound)
		}
		for i := range found {
			ids = append(ids, found[i].ID)
		}
	}
	if len(ids) == 0 && len(s.certificates) == 0 {
		return nil, usageErrorf("which devices? give ids, --file, --group or --token")
	}
	return ids, nil
}

// readIDs reads one id from each line; blank lines and those that begin with # say
// nothing.
func readIDs(name string, text []byte) ([]inventory.DeviceID, error) {
	var ids []inventory.DeviceID
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		id, err := inventory.ParseDeviceID(line)
		if err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", name, n, err)
		}
		ids = append(ids, id)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return ids, nil
}

// turnResult is what a command that ends or holds credentials shows.
type turnResult struct {
	verb      string
	changed   int
	unchanged int
	receipts  []delivery.Receipt
}

// newTurnCommand is a command that takes devices from one state to another, and
// the brokers with them.
func newTurnCommand(a *app, cmd *cobra.Command, s *selection, done string, turn func(f *fleet, ctx context.Context, reason string, ids []inventory.DeviceID) (int, error)) *cobra.Command {
	var comment string
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := a.openFleet(cmd.Context())
		if err != nil {
			return err
		}
		defer f.Close()
		ids, err := s.devices(cmd.Context(), f, args)
		if err != nil {
			return err
		}
		from, err := f.revision(cmd.Context())
		if err != nil {
			return err
		}
		n, err := turn(f, cmd.Context(), comment, ids)
		if err != nil {
			return err
		}
		r := turnResult{verb: done, changed: n, unchanged: max(0, len(uniqueIDs(ids))+len(s.certificates)-n)}
		names, err := f.nodeNames()
		if err != nil {
			return err
		}
		if len(names) > 0 {
			r.receipts, err = f.enforce(cmd.Context(), from, names)
		}
		return errors.Join(a.printTurn(r, len(names) > 0), err)
	}
	cmd.Flags().StringVar(&comment, "comment", "", "`text` for the audit log")
	s.addFlags(cmd)
	return cmd
}

func (a *app) printTurn(r turnResult, nodes bool) error {
	out := map[string]any{r.verb: r.changed, "unchanged": r.unchanged}
	if nodes {
		out["receipts"] = append([]delivery.Receipt{}, r.receipts...)
	}
	if a.output == outputJSON {
		return a.print(out, nil)
	}
	line := fmt.Sprintf("%d %s", r.changed, r.verb)
	if r.unchanged > 0 {
		line += fmt.Sprintf(", %d unchanged", r.unchanged)
	}
	a.say("%s", line)
	switch {
	case len(r.receipts) > 0:
		return a.printReceipts(r.receipts)
	case r.changed > 0 && !nodes:
		a.say(`the inventory says so; brokers learn it from "imprint export", or at once if imprint knows them: imprint broker add`)
	}
	return nil
}

// revision is how many changes there have been.
func (f *fleet) revision(ctx context.Context) (n uint64, err error) {
	err = f.store.Read(ctx, func(in inventory.Reader) error {
		n = in.Revision()
		return nil
	})
	return n, err
}

// enforceWait is how long a command waits for a server to bring the brokers up to
// date.
const enforceWait = 60 * time.Second

// enforce brings the brokers up to date with what has been changed after the revision
// from. Beside a
// server it is the server that does so, and the command waits for it.
func (f *fleet) enforce(ctx context.Context, from uint64, names []string) ([]delivery.Receipt, error) {
	if _, served := f.store.(servedStore); served {
		return f.awaitServer(ctx, from, names)
	}
	nodes, err := f.openNodes(names)
	if err != nil {
		return nil, err
	}
	defer closeNodes(nodes)
	return f.syncer(actor()).SyncAll(ctx, nodes, false)
}

func (f *fleet) awaitServer(ctx context.Context, from uint64, names []string) ([]delivery.Receipt, error) {
	ctx, cancel := context.WithTimeout(ctx, enforceWait)
	defer cancel()
	for {
		behind, err := delivery.Behind(context.WithoutCancel(ctx), f.store, names)
		if err != nil {
			return nil, err
		}
		failing := slices.ContainsFunc(behind, func(l delivery.Lag) bool { return !l.Progress.Failed.IsZero() })
		if len(behind) == 0 || failing || ctx.Err() != nil {
			receipts, err := f.receipts(context.WithoutCancel(ctx), from, 0)
			var errs []error
			for _, l := range behind {
				errs = append(errs, fmt.Errorf("node %s: %w: %s", l.Node, delivery.ErrUnproven, l.Progress.Error))
			}
			return receipts, errors.Join(append(errs, err)...)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// receipts returns the receipts in the audit log after an event; the last limit of
// them, or all if it is 0.
func (f *fleet) receipts(ctx context.Context, after uint64, limit int) ([]delivery.Receipt, error) {
	var out []delivery.Receipt
	err := f.store.Read(ctx, func(in inventory.Reader) error {
		for e, err := range in.Events(after + 1) {
			if err != nil {
				return err
			}
			if r, ok := delivery.ReadReceipt(&e); ok {
				out = append(out, r)
			}
		}
		return nil
	})
	if limit > 0 && len(out) > limit {
		out = out[len(out)-limit:]
	}
	return out, err
}

func newRevocationsCommand(a *app) *cobra.Command {
	return newGroupCommand("revocations", "What has been revoked, and which brokers are known to obey",
		newRevocationsPendingCommand(a), newRevocationsReceiptsCommand(a))
}

// pendingView is a revocation that a broker has not been seen to obey.
type pendingView struct {
	Node   string             `json:"node"`
	Device inventory.DeviceID `json:"device"`
	Action string             `json:"action"`
	Since  time.Time          `json:"since"`
	Error  string             `json:"error,omitempty"` // why the broker could not be brought up to date
}

func newRevocationsPendingCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "pending",
		Short: "List revocations that a broker has not been seen to obey",
		Long: `Pending lists, for each broker, the devices whose credentials were ended and of which
it has not been proven that the broker knows. "imprint broker sync", or a running
server, tries again. The exit code is 0 also if there are any.`,
		Example: `  imprint revocations pending --output json`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := a.readFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			names, err := f.nodeNames()
			if err != nil {
				return err
			}
			lags, err := delivery.Pending(cmd.Context(), f.store, names)
			if err != nil {
				return err
			}
			for _, l := range lags {
				if l.More {
					a.warn(fmt.Sprintf("%s: only the first %d are listed", l.Node, len(l.Endings)))
				}
			}
			return a.printRows([]string{"NODE", "DEVICE", "ACTION", "SINCE", "FAULT"}, func(emit func(any, ...string) error) error {
				for _, l := range lags {
					for _, e := range l.Endings {
						v := pendingView{Node: l.Node, Device: e.Device, Action: e.Action, Since: e.Time, Error: l.Progress.Error}
						if err := emit(v, v.Node, string(v.Device), v.Action, when(v.Since), v.Error); err != nil {
							return err
						}
					}
				}
				return nil
			})
		},
	}
}

func newRevocationsReceiptsCommand(a *app) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:   "receipts",
		Short: "Show what was done at each broker, from the audit log",
		Example: `  imprint revocations receipts --limit 1
  imprint revocations receipts --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := a.readFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			receipts, err := f.receipts(cmd.Context(), 0, limit)
			if err != nil {
				return err
			}
			if len(receipts) == 0 && a.output != outputJSON {
				a.say("no broker has been brought up to date yet")
				return nil
			}
			return a.printReceipts(append([]delivery.Receipt{}, receipts...))
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 10, "the last so `many`; 0 means all")
	return cmd
}
