package page

import (
	"fmt"
	"slices"
	"time"

	"github.com/sealdisk/sealdisk/internal/measure"
)

// Results is all that a page is made of.
type Results struct {
	Date   string
	Took   time.Duration
	Rounds int
	Disk   int64 // its size, bytes
	Data   int64 // of it, that is not zero
	Facts  []measure.Fact
	Cases  []*Case
}

// Case is what the ways were compared at.
type Case struct {
	Link string // Mbit/s or Gbit/s, as tc has it
	Rate int64  // bytes per second that the guest was to write
	Ways []*Way
}

// Way is one contender in a case.
type Way struct {
	Name   string
	Runs   []Run
	Failed []string // why runs have no figures
}

// Run is one migration.
type Run struct {
	Total     time.Duration // until all is at the destination and the guest runs there
	There     time.Duration // until the guest runs there
	Downtime  time.Duration
	Bytes     int64         // over the link, both ways
	Processor time.Duration // of all programs of both hosts
	Moving    time.Duration // of it, without what as many writes used before
	Before    Load
	While     Load // from the start until all is there
}

// Load is what a guest wrote in a while.
type Load struct {
	Rate         float64 // writes per second
	Write, Flush Times
}

// Times is how long writes, or flushes, took.
type Times struct{ Median, P99, Longest time.Duration }

// Names of the contenders.
const (
	Eager    = "sealdisk"
	Lazy     = "sealdisk --lazy"
	QEMU     = "QEMU"
	Qcow2    = "QEMU, qcow2"
	Blocking = "QEMU, write-blocking"
)

// Add takes a run, or why there is none.
func (c *Case) Add(name string, run Run, err error) {
	i := slices.IndexFunc(c.Ways, func(w *Way) bool { return w.Name == name })
	if i < 0 {
		i, c.Ways = len(c.Ways), append(c.Ways, &Way{Name: name})
	}
	if err != nil {
		c.Ways[i].Failed = append(c.Ways[i].Failed, err.Error())
		return
	}
	c.Ways[i].Runs = append(c.Ways[i].Runs, run)
}

// Failed tells whether a run of a contender has no figures.
func (c *Case) Failed(name string) bool { return len(c.way(name).Failed) > 0 }

func (c *Case) String() string {
	return fmt.Sprintf("%s, %d MB/s", linkName[c.Link], c.Rate/1000000)
}

var linkName = map[string]string{"1gbit": "1 Gbit/s", "100mbit": "100 Mbit/s"}

func (c *Case) way(name string) *Way {
	for _, w := range c.Ways {
		if w.Name == name {
			return w
		}
	}
	return &Way{Name: name}
}

// values of a metric in all runs.
func (w *Way) values(m metric) (list []float64) {
	for _, r := range w.Runs {
		list = append(list, m.of(r))
	}
	return list
}
