package server

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics is what Prometheus reads. No label holds anything that a peer can
// choose: routes are those of the table, methods those of HTTP.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	issued   *prometheus.CounterVec
	crlAge   *prometheus.GaugeVec
	crlFails *prometheus.CounterVec
	ocsp     *prometheus.CounterVec

	decisions     *prometheus.CounterVec
	conflicts     prometheus.Counter
	roaming       prometheus.Counter
	brokerUp      *prometheus.GaugeVec
	brokerCRL     *prometheus.GaugeVec
	brokerSeconds prometheus.Histogram
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "imprint_requests_total", Help: "Requests by route, method and HTTP status.",
		}, []string{"route", "method", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "imprint_request_seconds", Help: "Time from the header of a request to the end of its answer.",
			Buckets: []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .25, .5, 1, 5, 20},
		}, []string{"route"}),
		issued: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "imprint_certificates_total", Help: "Certificates handed out, by how they were asked for; again is one that the device had already.",
		}, []string{"how"}),
		crlAge: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "imprint_crl_age_ratio", Help: "Age of the published CRL as a part of its life: alarm above 0.5, brokers refuse everybody above 1.",
		}, []string{"issuer"}),
		crlFails: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "imprint_crl_failures_total", Help: "CRLs that could not be signed or stored.",
		}, []string{"issuer"}),
		ocsp: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "imprint_ocsp_answers_total", Help: "OCSP answers by status; error is a request that cannot be read.",
		}, []string{"status", "signed"}),
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "imprint_broker_decisions_total", Help: "What brokers asked about clients, by the answer: allowed or denied.",
		}, []string{"answer"}),
		conflicts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "imprint_device_conflicts_total", Help: "Certificates shown that were replaced by one in use: two hold keys of one device. Alarm.",
		}),
		roaming: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "imprint_device_two_networks_total", Help: "Certificates used from two networks within a minute, each once an hour: a copied key, or a device that roams.",
		}),
		brokerUp: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "imprint_broker_up_to_date", Help: "1 if the broker was seen to obey the last time it was told something, 0 if not: alarm.",
		}, []string{"node"}),
		brokerCRL: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "imprint_broker_crl_next_update_seconds", Help: "Unix time at which the first CRL of the broker lapses; then it refuses everybody.",
		}, []string{"node"}),
		brokerSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "imprint_broker_sync_seconds", Help: "Time from the look at what has changed to the proof that a broker obeys.",
			Buckets: []float64{.05, .1, .2, .5, 1, 2, 5, 10, 30},
		}),
	}
	m.registry.MustRegister(m.requests, m.seconds, m.issued, m.crlAge, m.crlFails, m.ocsp, m.decisions, m.conflicts, m.roaming, m.brokerUp, m.brokerCRL, m.brokerSeconds)
	return m
}

func (m *metrics) request(route, method string, status int, took time.Duration) {
	m.requests.WithLabelValues(route, knownMethod(method), strconv.Itoa(status)).Inc()
	m.seconds.WithLabelValues(route).Observe(took.Seconds())
}

// knownMethod keeps invented methods from becoming labels.
func knownMethod(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost:
		return method
	}
	return "other"
}

// metricsHandler is the listener for Prometheus, which also says how the server
// is.
func (s *Server) metricsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second}))
	for _, rt := range s.healthRoutes() {
		mux.Handle(rt.method+" "+rt.pattern, s.serve(&rt))
	}
	return mux
}

// decided counts an answer to a broker.
func (m *metrics) decided(allowed bool) {
	answer := "denied"
	if allowed {
		answer = "allowed"
	}
	m.decisions.WithLabelValues(answer).Inc()
}
