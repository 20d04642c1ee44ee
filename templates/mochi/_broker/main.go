// Command broker is a mochi MQTT server for a fleet of imprint. It takes the
// directory of an export:
//
//	broker /etc/imprint/mochi
//
// It reads the export again on SIGHUP, and by itself when a file of it changes. The
// files imprinthook.go and imprintfleet.go can be taken into any other program that
// has a mochi server.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: broker DIRECTORY")
		os.Exit(64)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "broker:", err)
		os.Exit(1)
	}
}

// Settings are the addresses of the listeners.
type Settings struct {
	Imprint      string `json:"imprint"` // the mark of the export
	Certificates string `json:"certificates"`
	Passwords    string `json:"passwords"`
}

func run(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, "mochi.json"))
	if err != nil {
		return err
	}
	var s Settings
	if err := json.Unmarshal(text, &s); err != nil {
		return fmt.Errorf("reading mochi.json: %w", err)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	server := mqtt.New(&mqtt.Options{Logger: log})
	hook, err := NewHook(server, dir)
	if err != nil {
		return err
	}
	if err := server.AddHook(hook, nil); err != nil {
		return err
	}
	for _, c := range []listeners.Config{
		{ID: "certificates", Type: "tcp", Address: s.Certificates, TLSConfig: hook.Certificates()},
		{ID: "passwords", Type: "tcp", Address: s.Passwords, TLSConfig: hook.Passwords()},
	} {
		if err := server.AddListener(listeners.NewTCP(c)); err != nil {
			return err
		}
	}
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := server.Serve(); err != nil {
		return err
	}
	go hook.Watch(ctx, 2*time.Second)
	log.Info("ready")
	for {
		select {
		case <-ctx.Done():
			return server.Close()
		case <-reload:
			if err := hook.Reload(); err != nil {
				log.Error("fleet is not loaded", "error", err)
			}
		}
	}
}
