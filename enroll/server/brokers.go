package server

import "time"

// A BrokerReport is what whoever keeps a broker up to date says of it.
type BrokerReport struct {
	Node       string
	Took       time.Duration // to bring it up to date
	Err        error         // why it could not be; nil if it was
	NextUpdate time.Time     // when the first of its CRLs lapses; zero if that is not known
}

// Broker takes a report into the metrics, which is where an alarm is set.
func (s *Server) Broker(r BrokerReport) {
	ok := 0.0
	if r.Err == nil {
		ok = 1
		s.metrics.brokerSeconds.Observe(r.Took.Seconds())
	}
	s.metrics.brokerUp.WithLabelValues(r.Node).Set(ok)
	if !r.NextUpdate.IsZero() {
		s.metrics.brokerCRL.WithLabelValues(r.Node).Set(float64(r.NextUpdate.Unix()))
	}
}
