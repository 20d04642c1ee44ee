package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/imprint-iot/imprint/ca"
)

func newCAVerificationCommand(a *app) *cobra.Command {
	var code, issuer, out string
	cmd := &cobra.Command{
		Use:   "sign-verification",
		Short: "Prove to AWS IoT Core or Azure that you have the key of a CA",
		Long: `Sign-verification signs the certificate that AWS IoT Core, Azure IoT Hub and Azure DPS
want to see when a CA is registered: its common name is the code that they gave. It is
good for 24 hours and for nothing else; the private key is not kept, since nobody asks
for it. It is recorded like every certificate, and the one made for the same CA before
is revoked. The code may not be the ID of a device.

The CA is the newest that signs for devices. Another one, which may stand by, or a root
whose key is in the fleet, is named by --issuer.

Exit codes: 64 a flag is missing; 65 the code or the issuer cannot be used; 69 the key of
the CA is not here; 74 the file cannot be written; 77 the issuer is retired or has no
certificate yet, or the passphrase is wrong.`,
		Example: `  imprint ca sign-verification --code 0123456789abcdef0123456789abcdef0123456789abcdef --out verification.pem
  imprint ca sign-verification --code 0123456789abcdef0123456789abcdef0123456789abcdef --issuer root-1 --out verification.pem`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			f, err := a.openFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			file, err := createOut(out, 0o644) // before it is recorded: that it cannot be written is found out here
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, file.close()) }()
			cert, by, err := f.SignVerification(cmd.Context(), actor(), code, issuer)
			if err != nil {
				return err
			}
			if err := file.finish(ca.CertificatePEM(cert.DER)); err != nil {
				return err
			}
			return a.print(map[string]any{"issuer": by.Name, "code": code, "serial": cert.Serial, "notAfter": cert.NotAfter, "certificate": out}, func(w io.Writer) {
				_, _ = fmt.Fprintf(w, "%s proves until %s that you have the key of %s\n", out, cert.NotAfter.Format(time.RFC3339), by.Name)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&code, "code", "", "registration or verification `code`, as AWS or Azure gave it (required)")
	flags.StringVar(&issuer, "issuer", "", "`name` of the CA that is registered (default: the newest active issuer of devices)")
	flags.StringVar(&out, "out", "", "`file` for the certificate, PEM (required)")
	for _, name := range []string{"code", "out"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // the flag is defined above
		}
	}
	return cmd
}
