package main

import (
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// everyCommand calls do for each command of a new tree.
func everyCommand(do func(*cobra.Command)) {
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		do(c)
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRootCommand(&app{now: time.Now}))
}

// TestEveryCommandHelps: each command says what it does, each flag what it means,
// and whoever takes arguments gives an example. No flag takes a secret.
func TestEveryCommandHelps(t *testing.T) {
	everyCommand(func(c *cobra.Command) {
		if c.Short == "" {
			t.Errorf("%s: no description", c.CommandPath())
		}
		if !c.HasSubCommands() && strings.Contains(c.Use, " ") && c.Example == "" {
			t.Errorf("%s: takes arguments and gives no example", c.CommandPath())
		}
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s: --%s is not explained", c.CommandPath(), f.Name)
			}
			switch f.Name {
			case "password", "passphrase", "secret", "pin", "key-pin":
				t.Errorf("%s: --%s takes a secret: others can read the command line", c.CommandPath(), f.Name)
			}
		})
	})
}

// TestExamples: every line of every example is a command line that is understood.
func TestExamples(t *testing.T) {
	n := 0
	everyCommand(func(c *cobra.Command) {
		for line := range strings.Lines(c.Example) {
			n++
			if err := understood(strings.TrimSpace(line)); err != nil {
				t.Errorf("%s: %q: %v", c.CommandPath(), line, err)
			}
		}
	})
	if n < 30 {
		t.Errorf("%d examples: some have not been found", n)
	}
}

// understood parses a command line as far as running it.
func understood(line string) error {
	line, _, _ = strings.Cut(line, " > ")
	words := split(line)
	if len(words) == 0 || words[0] != "imprint" {
		return usageErrorf("it is no command of imprint")
	}
	root := newRootCommand(&app{now: time.Now})
	c, args, err := root.Find(words[1:])
	if err != nil {
		return err
	}
	if !c.Runnable() || c.HasSubCommands() && c != root {
		return usageErrorf("%s does nothing", c.CommandPath())
	}
	if err := c.ParseFlags(args); err != nil {
		return err
	}
	if err := c.ValidateRequiredFlags(); err != nil {
		return err
	}
	return c.ValidateArgs(c.Flags().Args())
}

// split is as much of a shell as the examples need: words, and double quotes.
func split(line string) []string {
	quoted := false
	return strings.FieldsFunc(strings.Map(func(r rune) rune {
		switch {
		case r == '"':
			quoted = !quoted
			return -1
		case quoted && r == ' ':
			return '_'
		}
		return r
	}, line), func(r rune) bool { return r == ' ' })
}
