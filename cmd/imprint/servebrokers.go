package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/imprint-iot/imprint/enroll/delivery"
	"github.com/imprint-iot/imprint/enroll/server"
	"github.com/imprint-iot/imprint/inventory/durable"
)

// How often a server looks for changes: of the fleet, and of which brokers there are
// and how they are reached.
const (
	brokerPause  = 250 * time.Millisecond
	brokersPause = 2 * time.Second
)

// keepBrokers keeps the brokers up to date until ctx ends.
func (s *service) keepBrokers(ctx context.Context) {
	for ctx.Err() == nil {
		mark, err := s.brokersMark()
		if err != nil {
			s.log.Error("the brokers cannot be listed", slog.Any("err", err))
		} else if nodes, err := s.openNodes(nil); err != nil {
			s.log.Error("a broker cannot be worked on", slog.Any("err", err))
		} else {
			s.watchNodes(ctx, nodes, mark)
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(brokersPause):
		}
	}
}

// watchNodes works on nodes until ctx ends or their configuration changes.
func (s *service) watchNodes(ctx context.Context, nodes []*delivery.Node, mark string) {
	defer closeNodes(nodes)
	ctx, cancel := context.WithCancel(ctx)
	var wait sync.WaitGroup
	defer wait.Wait()
	defer cancel()
	wait.Go(func() {
		s.syncer("server").Watch(ctx, nodes, brokerPause, s.reportBroker)
	})
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(brokersPause):
		}
		if now, err := s.brokersMark(); err != nil || now != mark {
			return
		}
	}
}

func (s *service) reportBroker(node string, r *delivery.Receipt, err error) {
	s.server.Broker(server.BrokerReport{Node: node, Err: err, Took: took(r), NextUpdate: nextUpdate(r)})
	if err != nil {
		s.log.Error("broker is behind", slog.Any("node", node), slog.Any("err", err))
		return
	}
	s.log.Info("broker is up to date", slog.Any("node", r.Node), slog.Any("revision", r.Revision), slog.Any("ended", r.Count), slog.Any("took", r.Took))
}

func took(r *delivery.Receipt) time.Duration {
	if r == nil {
		return 0
	}
	return r.Took
}

func nextUpdate(r *delivery.Receipt) time.Time {
	if r == nil {
		return time.Time{}
	}
	return r.NextUpdate
}

// brokersMark changes when a broker comes, goes or is reached in another way.
func (s *service) brokersMark() (string, error) {
	names, err := s.nodeNames()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, name := range names {
		dir, err := s.nodeDir(name)
		if err != nil {
			return "", err
		}
		for _, file := range []string{nodeConfigFile, nodeAdminFile} {
			if err := hashFile(h, dir, file); err != nil {
				_ = dir.Close()
				return "", err
			}
		}
		if err := dir.Close(); err != nil {
			return "", err
		}
	}
	return string(h.Sum(nil)), nil
}

func hashFile(h interface{ Write([]byte) (int, error) }, dir *durable.Dir, name string) error {
	b, err := dir.ReadFile(name, maxConfig)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(h, "%s %s %d\n%s", dir.Path(), name, len(b), b)
	return err
}
