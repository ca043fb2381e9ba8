package metrics

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Set is the metrics of one daemon. Safe for concurrent use.
type Set struct {
	registry *prometheus.Registry
	network  *prometheus.CounterVec
	objects  prometheus.Counter
	refused  *prometheus.CounterVec
	waits    prometheus.Histogram
	latency  *prometheus.HistogramVec
	running  *prometheus.GaugeVec
}

// New makes the metrics of a daemon.
func New() *Set {
	s := &Set{
		registry: prometheus.NewRegistry(),
		network: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sealdisk_network_bytes_total", Help: "Bytes exchanged with a peer, inside TLS.",
		}, []string{"peer", "direction"}),
		objects: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sealdisk_objects_received_total", Help: "Objects that came from peers and were stored.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sealdisk_refused_total", Help: "Connections and requests of peers that were refused.",
		}, []string{"cause"}),
		waits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sealdisk_demand_seconds", Help: "How long readers waited for data that had to come from a peer.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 17),
		}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sealdisk_disk_seconds", Help: "How long flushes and commits took.",
			Buckets: prometheus.ExponentialBuckets(0.00005, 2, 20),
		}, []string{"operation"}),
		running: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sealdisk_running", Help: "Pulls, pushes, fills and waiting readers, now.",
		}, []string{"what"}),
	}
	s.registry.MustRegister(s.network, s.objects, s.refused, s.waits, s.latency, s.running,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return s
}

// Gauge adds a value that is asked for when it is looked at.
func (s *Set) Gauge(name, help string, value func() float64) {
	s.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
}

// Handler answers Prometheus.
func (s *Set) Handler() http.Handler {
	return promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second})
}

// Network counts bytes exchanged with a peer.
func (s *Set) Network(peer string, in, out int) {
	if in > 0 {
		s.network.WithLabelValues(peer, "in").Add(float64(in))
	}
	if out > 0 {
		s.network.WithLabelValues(peer, "out").Add(float64(out))
	}
}

// Received counts objects that came.
func (s *Set) Received(objects int64) { s.objects.Add(float64(objects)) }

// Refused counts a refusal.
func (s *Set) Refused(cause string) { s.refused.WithLabelValues(cause).Inc() }

// Waited notes how long a reader waited for data.
func (s *Set) Waited(d time.Duration) { s.waits.Observe(d.Seconds()) }

// Took notes how long a flush or a commit took.
func (s *Set) Took(operation string, d time.Duration) {
	s.latency.WithLabelValues(operation).Observe(d.Seconds())
}

// Running notes that something began; done notes its end.
func (s *Set) Running(what string) (done func()) {
	g := s.running.WithLabelValues(what)
	g.Inc()
	return g.Dec
}
