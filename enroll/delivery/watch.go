package delivery

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/imprint-iot/imprint/inventory"
)

// How long a node that fails is left alone: at first, and at most.
const (
	retryFirst = 2 * time.Second
	retryMost  = time.Minute
)

// Watch keeps nodes up to date until ctx ends. Each node is looked at every so
// often, and brought up to date for everything that has happened by then, so that
// many revocations in a short time cost few reloads: at most one in every, and no
// two of one node at a time. Devices that come or renew, as they do all the time in a
// large fleet, wait a little longer for each other: see calmPause. A node that fails is tried again, less and less
// often. report is told each receipt and each new failure, one at a time.
func (s *Syncer) Watch(ctx context.Context, nodes []*Node, every time.Duration, report func(node string, r *Receipt, err error)) {
	var mu sync.Mutex
	var wait sync.WaitGroup
	for _, n := range nodes {
		wait.Go(func() {
			s.watch(ctx, n, every, func(r *Receipt, err error) {
				mu.Lock()
				defer mu.Unlock()
				report(n.Name, r, err)
			})
		})
	}
	wait.Wait()
}

func (s *Syncer) watch(ctx context.Context, n *Node, every time.Duration, report func(*Receipt, error)) {
	said, retry, next := "", retryFirst, time.Time{}
	var seen uint64
	var last time.Time
	var took time.Duration
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if now := time.Now(); !now.Before(next) {
			revision, err := s.revision(ctx)
			if err == nil && (revision != seen || said != "" || now.Sub(next) > time.Minute) && !s.wait(ctx, n, now, last, took) {
				var r *Receipt
				r, err = s.Sync(ctx, n, false)
				if r != nil {
					last, took = now, r.Took
					report(r, nil)
				}
				if err == nil {
					seen, said, retry = revision, "", retryFirst
					next = now
				}
			}
			if err != nil && ctx.Err() == nil && !errors.Is(err, ErrBusy) {
				if text := oneLine(err); text != said {
					said = text
					report(nil, err)
				}
				next = now.Add(retry)
				retry = min(2*retry, retryMost)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// calmPause is how long at least devices that come or renew wait for each other before
// a node is told, and maxShare how much of the time may be spent on telling.
const (
	calmPause = 2 * time.Second
	maxShare  = 10
)

// wait reports whether there is nothing that could not wait a little longer.
func (s *Syncer) wait(ctx context.Context, n *Node, now, last time.Time, took time.Duration) bool {
	if now.Sub(last) >= max(calmPause, maxShare*took) {
		return false
	}
	how, err := s.due(ctx, n, false)
	return err == nil && how == calm
}

// revision is how many changes there have been.
func (s *Syncer) revision(ctx context.Context) (n uint64, err error) {
	err = s.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		n = in.Revision()
		return nil
	})
	return n, err
}
