// Package client talks to an enrollment server over /v1, for a device.
//
// It trusts the roots it is given and no others, follows no redirects, uses no
// proxy from the environment, and reads bounded answers.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/imprint-iot/imprint/enroll/api"
)

// A Config says which server to talk to. URL and Roots must be set.
type Config struct {
	URL   string // https://host[:port]
	Roots *x509.CertPool

	// Certificate returns the pair to show; nil, or nil from it, means none.
	Certificate func() (*tls.Certificate, error)

	// Time is the time at which the server's certificate is judged; nil means
	// [time.Now]. A device without a clock has to know better than that.
	Time func() time.Time

	Timeout time.Duration // of one request with all it takes; zero means 30 s
}

// A Client talks to one server. It is safe for concurrent use.
type Client struct {
	base string
	http *http.Client
}

// Limits on what a server may answer.
const (
	maxAnswer     = 64 << 10 // bytes
	defaultWait   = 30 * time.Second
	maxRetryAfter = 6 * time.Hour
)

// New returns a Client. It connects to nothing yet.
func New(cfg Config) (*Client, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("server %.100q: want a URL as https://enroll.example:8443", cfg.URL)
	}
	if cfg.Roots == nil {
		return nil, errors.New("server: no trust bundle: a server that is not pinned is not trusted")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultWait
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.Roots, Time: cfg.Time}
	if cfg.Certificate != nil {
		t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := cfg.Certificate()
			if err == nil && pair == nil {
				pair = &tls.Certificate{}
			}
			return pair, err
		}
	}
	return &Client{
		base: strings.TrimSuffix(cfg.URL, "/"),
		http: &http.Client{
			Timeout: cfg.Timeout,
			Transport: &http.Transport{
				TLSClientConfig: t, TLSHandshakeTimeout: 15 * time.Second, ResponseHeaderTimeout: cfg.Timeout,
				// A pair can change between two requests, and they are rare.
				DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 16 << 10,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// A ProblemError reports that the server has refused.
type ProblemError struct {
	api.Problem

	// RetryAfter is when to ask again, at most 6 hours; zero if the server has
	// not said.
	RetryAfter time.Duration
}

// Error says why, as the server has put it.
func (e *ProblemError) Error() string {
	if e.Detail != "" {
		return fmt.Sprintf("server refused: %s (%s)", e.Code, e.Detail)
	}
	return "server refused: " + e.Code
}

// ErrPending reports a request that waits for an operator.
var ErrPending = errors.New("enrollment waits for approval")

// An Answer is what came back with a date of the server's, which a device without
// a clock may use.
type Answer[T any] struct {
	Value T
	Date  time.Time // zero if the server has not said
}

// Enroll asks for the first certificate, with a token in its text form, or, if it
// is empty, with the certificate of the Config. The error is a [*ProblemError], or
// wraps [ErrPending].
func (c *Client) Enroll(ctx context.Context, token string, q api.EnrollRequest) (Answer[api.EnrollResponse], error) {
	return call[api.EnrollResponse](ctx, c, http.MethodPost, api.PathEnroll, token, q)
}

// Renew asks for the next certificate, with the present one.
func (c *Client) Renew(ctx context.Context, q api.EnrollRequest) (Answer[api.EnrollResponse], error) {
	return call[api.EnrollResponse](ctx, c, http.MethodPost, api.PathRenew, "", q)
}

// Report tells the server how the certificate of the Config works.
func (c *Client) Report(ctx context.Context, r api.StatusReport) (Answer[api.StatusResponse], error) {
	return call[api.StatusResponse](ctx, c, http.MethodPost, api.PathEnrollStatus, "", r)
}

// Orders asks whether to renew before it is due. A server that does not know the
// question has none.
func (c *Client) Orders(ctx context.Context) (Answer[api.Orders], error) {
	var out Answer[api.Orders]
	body, resp, err := c.do(ctx, http.MethodGet, api.PathOrders, "", nil)
	if p, ok := errors.AsType[*ProblemError](err); ok && p.Status == http.StatusNotFound {
		return out, nil
	}
	if err != nil {
		return out, err
	}
	out.Date = date(resp)
	if err := json.Unmarshal(body, &out.Value); err != nil {
		return out, fmt.Errorf("reading the server's answer: %w", err)
	}
	return out, nil
}

// MQTTToken asks for a token with which to log in to a broker, with the certificate of
// the Config. The dialect is that of the broker: "emqx" or "hivemq".
func (c *Client) MQTTToken(ctx context.Context, dialect string) (Answer[api.MQTTTokenResponse], error) {
	return call[api.MQTTTokenResponse](ctx, c, http.MethodPost, api.PathMQTTToken, "", api.MQTTTokenRequest{Dialect: dialect})
}

// TrustBundle returns the roots of the fleet, PEM.
func (c *Client) TrustBundle(ctx context.Context) (Answer[[]byte], error) {
	var out Answer[[]byte]
	body, resp, err := c.do(ctx, http.MethodGet, api.PathTrustBundle, "", nil)
	if err != nil {
		return out, err
	}
	out.Value, out.Date = body, date(resp)
	return out, nil
}

func call[T any](ctx context.Context, c *Client, method, path, token string, q any) (Answer[T], error) {
	var out Answer[T]
	b, err := json.Marshal(q)
	if err != nil {
		return out, err
	}
	body, resp, err := c.do(ctx, method, path, token, b)
	if err != nil {
		return out, err
	}
	out.Date = date(resp)
	if err := json.Unmarshal(body, &out.Value); err != nil {
		return out, fmt.Errorf("reading the server's answer: %w", err)
	}
	return out, nil
}

func (c *Client) do(ctx context.Context, method, path, token string, body []byte) ([]byte, *http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", api.MediaJSON)
		req.Header.Set("Accept", api.MediaJSON)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // the URL says nothing that is not known
		}
		return nil, nil, fmt.Errorf("reaching the server: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, resp, fmt.Errorf("reading the server's answer: %w", err)
	}
	if len(b) > maxAnswer {
		return nil, resp, errors.New("reading the server's answer: it is too long")
	}
	if resp.StatusCode == http.StatusOK {
		return b, resp, nil
	}
	return nil, resp, refusal(resp, b)
}

// refusal reads a problem. A server, or something in front of it, may say anything
// else.
func refusal(resp *http.Response, body []byte) error {
	e := &ProblemError{RetryAfter: retryAfter(resp.Header.Get("Retry-After"))}
	if json.Unmarshal(body, &e.Problem) != nil || e.Code == "" || !plain(e.Code) || !plain(e.Detail) {
		e.Problem = api.Problem{Code: "http." + strconv.Itoa(resp.StatusCode)}
	}
	e.Status = resp.StatusCode
	if resp.StatusCode == http.StatusAccepted {
		return fmt.Errorf("%w: %w", ErrPending, e)
	}
	return e
}

// plain reports a text that may be shown: short, and without control characters.
func plain(s string) bool {
	return len(s) <= 512 && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// retryAfter reads a number of seconds, or a date, and holds it to what makes
// sense: no server may silence a device for longer than a quarter of a day.
func retryAfter(text string) time.Duration {
	if text == "" {
		return 0
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return time.Duration(min(max(n, 1), int64(maxRetryAfter/time.Second))) * time.Second
	}
	if len(text) > 0 && text[0] >= '0' && text[0] <= '9' {
		return maxRetryAfter // a number that is too long
	}
	return 0
}

func date(resp *http.Response) time.Time {
	t, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return time.Time{}
	}
	return t.UTC()
}
