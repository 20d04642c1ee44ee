package ca

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"iter"
	"math/big"
	"slices"
	"strconv"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// A Revoked is one entry of a CRL.
type Revoked struct {
	Serial [16]byte
	Time   time.Time // revocationDate, in whole seconds

	// Reason is a CRLReason of RFC 5280 §5.3.1. 0 (unspecified) is written as no
	// reason at all, as that section wants it. 7 does not exist, and 8
	// (removeFromCRL) is for delta CRLs, which are not made here: both are
	// refused.
	Reason int
}

// A CRLConfig says what a CRL says of itself.
type CRLConfig struct {
	// Number is the CRL number (RFC 5280 §5.2.3), at least 1. It only grows; the
	// caller keeps count.
	Number uint64

	// ThisUpdate and NextUpdate are in whole seconds; NextUpdate is later. A
	// verifier that finds no newer CRL after NextUpdate refuses everybody.
	ThisUpdate, NextUpdate time.Time
}

func (c CRLConfig) check() error {
	switch {
	case c.Number == 0:
		return badConfig("CRL number", "0", "at least 1")
	case c.ThisUpdate.IsZero() || c.ThisUpdate.Year() >= 10000:
		return badConfig("thisUpdate", c.ThisUpdate.String(), "a time")
	case !c.NextUpdate.After(c.ThisUpdate) || c.NextUpdate.Year() >= 10000:
		return badConfig("nextUpdate", c.NextUpdate.UTC().Format(time.RFC3339), "a time after thisUpdate")
	}
	return nil
}

// CRL makes the full CRL of this issuer (RFC 5280 §5) and returns it in DER. It
// lists what revoked yields, in that order; if revoked yields an error, CRL
// returns it. With nothing revoked the list is absent, not empty, as
// RFC 5280 §5.1.2.6 wants it.
//
// There is no issuing distribution point: Mbed TLS refuses a CRL with a critical
// extension. To make CRLs smaller, use more issuers.
//
// The list is encoded as it is read, in one buffer: an entry costs 49 bytes and less
// than a microsecond. A million entries are 49 MB, and Mosquitto then pays 57 ms of
// CPU for them at every handshake.
func (i *Issuer) CRL(c CRLConfig, revoked iter.Seq2[Revoked, error]) ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	der, err := i.crl(c, revoked)
	if err != nil {
		return nil, fmt.Errorf("making CRL %d of %q: %w", c.Number, clip(i.cert.Subject.CommonName), err)
	}
	return der, nil
}

// crl lets crypto/x509 encode a list without entries, puts the entries in their
// place, and signs.
func (i *Issuer) crl(c CRLConfig, revoked iter.Seq2[Revoked, error]) ([]byte, error) {
	signer := &capture{pub: i.key.Public()}
	_, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		SignatureAlgorithm: i.alg, Number: new(big.Int).SetUint64(c.Number),
		ThisUpdate: c.ThisUpdate.UTC().Truncate(time.Second), NextUpdate: c.NextUpdate.UTC().Truncate(time.Second),
	}, i.cert, signer)
	if !errors.Is(err, errCaptured) {
		return nil, err
	}
	frame, err := readFrame(signer.tbs)
	if err != nil {
		return nil, err
	}
	// What comes before the entries is written in front of them at the end, when
	// the lengths are known.
	room := len(frame.head) + 4*maxHeader
	buf, n, err := appendEntries(make([]byte, room, room+1<<12), revoked)
	if err != nil {
		return nil, err
	}
	start := room
	if n > 0 {
		start = prependHeader(buf, start, cbasn1.SEQUENCE, len(buf)-start)
	}
	buf = append(buf, frame.tail...)
	start -= len(frame.head)
	copy(buf[start:], frame.head)
	start = prependHeader(buf, start, cbasn1.SEQUENCE, len(buf)-start)
	tbs := buf[start:]
	signature, err := crypto.SignMessage(i.key, rand.Reader, tbs, signer.opts)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeyUnavailable, err)
	}
	if err := i.cert.CheckSignature(i.alg, tbs, signature); err != nil {
		return nil, fmt.Errorf("checking the signature just made: %w", err)
	}
	buf = append(buf, frame.alg...)
	bits, err := asn1.Marshal(asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)})
	if err != nil {
		return nil, err
	}
	buf = append(buf, bits...)
	return buf[prependHeader(buf, start, cbasn1.SEQUENCE, len(buf)-start):], nil
}

// A crlFrame is a TBSCertList (RFC 5280 §5.1.2) around its revokedCertificates.
type crlFrame struct {
	head []byte // up to nextUpdate
	tail []byte // crlExtensions, with their tag
	alg  []byte // signature, the AlgorithmIdentifier
}

// readFrame takes a list without entries apart.
func readFrame(tbs []byte) (f crlFrame, err error) {
	in := cryptobyte.String(tbs)
	var body, alg cryptobyte.String
	if !in.ReadASN1(&body, cbasn1.SEQUENCE) {
		return f, errShape
	}
	rest := body
	if !rest.SkipASN1(cbasn1.INTEGER) || !rest.ReadASN1Element(&alg, cbasn1.SEQUENCE) || !rest.SkipASN1(cbasn1.SEQUENCE) {
		return f, errShape
	}
	for range 2 { // thisUpdate and nextUpdate
		if !rest.SkipOptionalASN1(cbasn1.UTCTime) || !rest.SkipOptionalASN1(cbasn1.GeneralizedTime) {
			return f, errShape
		}
	}
	if !rest.PeekASN1Tag(cbasn1.Tag(0).ContextSpecific().Constructed()) {
		return f, errShape
	}
	return crlFrame{head: body[:len(body)-len(rest)], tail: rest, alg: alg}, nil
}

var errShape = errors.New("unexpected shape of an encoded list")

// maxHeader is the longest tag and length here, in bytes: lengths below 2^32.
const maxHeader = 6

// prependHeader writes tag and length of n bytes so that they end at the offset end,
// and returns where they begin.
func prependHeader(buf []byte, end int, tag cbasn1.Tag, n int) int {
	var h [maxHeader]byte
	b := append(h[:0], byte(tag))
	switch {
	case n < 0x80:
		b = append(b, byte(n))
	case n < 1<<8:
		b = append(b, 0x81, byte(n))
	case n < 1<<16:
		b = append(b, 0x82, byte(n>>8), byte(n))
	case n < 1<<24:
		b = append(b, 0x83, byte(n>>16), byte(n>>8), byte(n))
	default:
		b = append(b, 0x84, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	copy(buf[end-len(b):], b)
	return end - len(b)
}

// maxEntries bounds a list: its length has to fit into 32 bits.
const maxEntries = 50_000_000

// appendEntries appends what revoked yields and returns how many that are. Each
// serial number may come once; the store yields them in order, and then that is seen
// at once.
func appendEntries(buf []byte, revoked iter.Seq2[Revoked, error]) ([]byte, int, error) {
	var serials [][16]byte
	sorted := true
	for r, err := range revoked {
		if err != nil {
			return nil, 0, fmt.Errorf("reading what is revoked: %w", err)
		}
		if err := r.check(); err != nil {
			return nil, 0, err
		}
		if n := len(serials); n > 0 && bytes.Compare(serials[n-1][:], r.Serial[:]) >= 0 {
			sorted = false
		}
		if len(serials) == maxEntries {
			return nil, 0, badConfig("entries", strconv.Itoa(maxEntries), "fewer")
		}
		serials = append(serials, r.Serial)
		if cap(buf)-len(buf) < maxEntry {
			buf = slices.Grow(buf, len(buf)+maxEntry)
		}
		buf = r.append(buf)
	}
	if !sorted {
		slices.SortFunc(serials, func(a, b [16]byte) int { return bytes.Compare(a[:], b[:]) })
		for k := 1; k < len(serials); k++ {
			if serials[k] == serials[k-1] {
				return nil, 0, badConfig("serial number", fmt.Sprintf("%x", serials[k]), "each once")
			}
		}
	}
	return buf, len(serials), nil
}

func (r *Revoked) check() error {
	switch r.Reason {
	case 0, 1, 2, 3, 4, 5, 6, 9, 10:
	default:
		return badConfig("reason of "+fmt.Sprintf("%x", r.Serial), strconv.Itoa(r.Reason), "a CRLReason other than 7 and 8")
	}
	if r.Serial[0] >= 0x80 || r.Serial == [16]byte{} {
		return badConfig("serial number", fmt.Sprintf("%x", r.Serial), "a positive number")
	}
	if r.Time.IsZero() || r.Time.UTC().Year() < 1950 || r.Time.UTC().Year() > 9999 {
		return badConfig("revocation time of "+fmt.Sprintf("%x", r.Serial), r.Time.String(), "a time")
	}
	return nil
}

// maxEntry is the longest entry, in bytes.
const maxEntry = 2 + 18 + 17 + 14

// append appends the entry, RFC 5280 §5.1.2.6: serial number, date, and the reason as
// the one extension (§5.3.1) unless it is unspecified.
func (r *Revoked) append(b []byte) []byte {
	at := len(b)
	b = append(b, 0x30, 0)
	serial := r.Serial[:]
	for len(serial) > 1 && serial[0] == 0 && serial[1] < 0x80 {
		serial = serial[1:] // DER: no more octets than the sign needs
	}
	b = append(b, 2, byte(len(serial)))
	b = append(b, serial...)
	t := r.Time.UTC()
	if t.Year() < 2050 {
		b = t.AppendFormat(append(b, byte(cbasn1.UTCTime), 13), "060102150405Z")
	} else {
		b = t.AppendFormat(append(b, byte(cbasn1.GeneralizedTime), 15), "20060102150405Z")
	}
	if r.Reason != 0 {
		b = append(b, 0x30, 12, 0x30, 10, 6, 3, 0x55, 0x1d, 0x15, 4, 3, 0x0a, 1, byte(r.Reason))
	}
	b[at+1] = byte(len(b) - at - 2)
	return b
}
