// Command imprint-agent keeps the certificate of one Linux device alive. It is the
// same agent as "imprint agent", in a program that is small enough for a gateway.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/imprint-iot/imprint/enroll/agent"
	"github.com/imprint-iot/imprint/enroll/client"
	"github.com/imprint-iot/imprint/inventory/durable"
)

// Exit codes, those of imprint.
const (
	exitOK      = 0
	exitUsage   = 64
	exitTemp    = 75 // try again: no network, another agent, or nobody has approved yet
	exitRefused = 77
	exitConfig  = 78
	exitIO      = 74
)

const usage = `imprint-agent keeps a device's certificate alive.

  imprint-agent enroll --config FILE [--token-file FILE]   get the first certificate
  imprint-agent run    --config FILE                       renew it in time, for ever
  imprint-agent status --config FILE                       what the agent does, as JSON
  imprint-agent version

The token is read from --token-file, or from the credential imprint-token of a
systemd service. It is never taken from an argument or the environment.

Exit codes: 0 done  64 wrong command line  74 disk  75 try again  77 refused  78 wrong configuration
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	if len(args) == 0 || args[0] == "help" || args[0] == "--help" || args[0] == "-h" {
		_, _ = io.WriteString(out, usage)
		return exitOK
	}
	if args[0] == "version" {
		_, _ = fmt.Fprintln(out, version())
		return exitOK
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.SetOutput(errOut)
	flags.Usage = func() { _, _ = io.WriteString(errOut, usage) }
	path := flags.String("config", "/etc/imprint-agent.json", "")
	tokenFile := flags.String("token-file", "", "")
	if err := flags.Parse(args[1:]); err != nil {
		return exitUsage
	}
	if flags.NArg() > 0 {
		_, _ = io.WriteString(errOut, usage)
		return exitUsage
	}
	err := do(ctx, args[0], *path, *tokenFile, out, slog.New(slog.NewTextHandler(errOut, nil)))
	if err != nil {
		_, _ = fmt.Fprintf(errOut, "imprint-agent: %v\n", err)
	}
	return exitCode(err)
}

var errUsage = errors.New("no such command")

func do(ctx context.Context, verb, path, tokenFile string, out io.Writer, log *slog.Logger) error {
	if verb != "enroll" && verb != "run" && verb != "status" {
		return fmt.Errorf("%w: %.40q: see imprint-agent --help", errUsage, verb)
	}
	cfg, err := agent.ReadConfig(path)
	if err != nil {
		return err
	}
	o := agent.Options{Log: log}
	switch verb {
	case "run":
		return agent.Run(ctx, cfg, o)
	case "status":
		s, err := agent.ReadStatus(cfg)
		if err != nil {
			return err
		}
		return write(out, s)
	}
	token, err := agent.ReadToken(tokenFile, os.Getenv("CREDENTIALS_DIRECTORY"))
	if err != nil {
		return err
	}
	s, err := agent.Enroll(ctx, cfg, o, token)
	return errors.Join(err, write(out, s))
}

func write(out io.Writer, s agent.Status) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(s)
}

func exitCode(err error) int {
	p, refused := errors.AsType[*client.ProblemError](err)
	_, busy := errors.AsType[*durable.InUseError](err)
	_, disk := errors.AsType[*fs.PathError](err)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errUsage):
		return exitUsage
	case errors.Is(err, agent.ErrConfig):
		return exitConfig
	case busy, errors.Is(err, client.ErrPending):
		return exitTemp
	case refused && p.Status < 500 && p.Status != 429:
		return exitRefused
	case disk:
		return exitIO
	}
	return exitTemp
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "imprint-agent"
	}
	return "imprint-agent " + info.Main.Version + " " + info.GoVersion
}
