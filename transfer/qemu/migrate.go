package qemu

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ErrFailed: QEMU gave the migration up. The guest runs on where it was, or is paused there.
var ErrFailed = errors.New("qemu: the migration failed")

// Version of QEMU.
type Version struct {
	Major int `json:"major"`
	Minor int `json:"minor"`
	Micro int `json:"micro"`
}

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// Older says whether v cannot be expected to take a guest of w.
func (v Version) Older(w Version) bool {
	return v.Major < w.Major || v.Major == w.Major && v.Minor < w.Minor
}

// Version asks QEMU for its version.
func (m *Monitor) Version(ctx context.Context) (Version, error) {
	var answer struct {
		QEMU Version `json:"qemu"`
	}
	err := m.Execute(ctx, "query-version", nil, &answer)
	return answer.QEMU, err
}

// Status asks for the state of the guest: "running", "paused", "inmigrate", ….
func (m *Monitor) Status(ctx context.Context) (string, error) {
	var answer struct {
		Status string `json:"status"`
	}
	err := m.Execute(ctx, "query-status", nil, &answer)
	return answer.Status, err
}

// Disks asks for the files of all disks that the guest has and may write.
func (m *Monitor) Disks(ctx context.Context) (files []string, err error) {
	var answer []struct {
		Inserted *struct {
			File     string `json:"file"`
			ReadOnly bool   `json:"ro"`
		} `json:"inserted"`
	}
	if err := m.Execute(ctx, "query-block", nil, &answer); err != nil {
		return nil, err
	}
	for _, d := range answer {
		if d.Inserted == nil || d.Inserted.ReadOnly {
			continue
		}
		files = append(files, d.Inserted.File)
	}
	return files, nil
}

// Incoming lets a QEMU that was started with -incoming defer wait at a URI.
func (m *Monitor) Incoming(ctx context.Context, uri string) error {
	return m.Execute(ctx, "migrate-incoming", map[string]string{"uri": uri}, nil)
}

// Options of a migration.
type Options struct {
	URI       string        // where the guest's memory goes
	Downtime  time.Duration // that QEMU aims at; 0: its own
	Bandwidth int64         // bytes per second; 0: QEMU does not bound it
	// Paused is called while the guest stands still, before its disks are given up; its
	// error cancels.
	Paused   func(ctx context.Context) error
	Progress func(Progress)
}

// Progress is how far a migration has come.
type Progress struct {
	Done, Total int64         // bytes of memory
	Rate, Dirty int64         // bytes per second: that go, and that the guest writes; 0: not known yet
	Downtime    time.Duration // that QEMU expects; 0: it does not know yet
}

// Report is what QEMU says of a migration.
type Report struct {
	Downtime time.Duration // that the guest stood still
	Total    time.Duration
	Setup    time.Duration
	Bytes    int64         // of memory and devices that went
	Paused   time.Duration // of the downtime, that Options.Paused took
}

// info is what query-migrate answers.
type info struct {
	Status    string `json:"status"`
	Error     string `json:"error-desc"`
	Downtime  int64  `json:"downtime"`
	Expected  int64  `json:"expected-downtime"`
	TotalTime int64  `json:"total-time"`
	SetupTime int64  `json:"setup-time"`
	RAM       struct {
		Transferred int64   `json:"transferred"`
		Total       int64   `json:"total"`
		Remaining   int64   `json:"remaining"`
		Rate        float64 `json:"mbps"`
		Dirty       int64   `json:"dirty-pages-rate"`
		PageSize    int64   `json:"page-size"`
	} `json:"ram"`
}

// progress takes nothing for granted: what it says is for people.
func (i *info) progress() Progress {
	const mega = 1000000 / 8
	p := Progress{
		Done: max(0, i.RAM.Total-i.RAM.Remaining), Total: i.RAM.Total, Downtime: time.Duration(clamp(i.Expected)) * time.Millisecond,
		Dirty: clamp(i.RAM.Dirty) * clamp(i.RAM.PageSize),
	}
	if r := i.RAM.Rate; r > 0 && r < maxFigure {
		p.Rate = int64(r * mega)
	}
	return p
}

// maxFigure is the largest that a figure of progress can be.
const maxFigure = 1 << 31

func clamp(n int64) int64 { return min(max(n, 0), maxFigure) }

const (
	pollStep      = 50 * time.Millisecond
	cancelTimeout = 30 * time.Second
	unbound       = 1 << 50 // bytes per second
	maxUntimed    = 20      // polls of a migration that is over, for its figures
)

// Migrate moves the guest and returns when it has gone, or stays. When ctx ends before the
// disks were given up it is cancelled, and runs on here.
func (m *Monitor) Migrate(ctx context.Context, o Options) (Report, error) {
	if err := m.prepare(ctx, o); err != nil {
		return Report{}, err
	}
	events, end := m.Watch()
	defer end()
	if err := m.Execute(ctx, "migrate", map[string]string{"uri": o.URI}, nil); err != nil {
		return Report{}, err
	}
	f := following{m: m, o: o, events: events}
	err := f.run(ctx)
	if err != nil && !errors.Is(err, ErrFailed) && !f.continued {
		err = errors.Join(err, m.cancel(context.WithoutCancel(ctx)))
	}
	return f.report, err
}

// prepare sets the capabilities and the bounds that a migration needs.
func (m *Monitor) prepare(ctx context.Context, o Options) error {
	type capability struct {
		Name  string `json:"capability"`
		State bool   `json:"state"`
	}
	caps := []capability{{"pause-before-switchover", true}, {"events", true}}
	if err := m.Execute(ctx, "migrate-set-capabilities", map[string]any{"capabilities": caps}, nil); err != nil {
		return err
	}
	parameters := map[string]any{"max-bandwidth": int64(unbound)}
	if o.Bandwidth > 0 {
		parameters["max-bandwidth"] = o.Bandwidth
	}
	if o.Downtime > 0 {
		parameters["downtime-limit"] = o.Downtime.Milliseconds()
	}
	return m.Execute(ctx, "migrate-set-parameters", parameters, nil)
}

// following is a migration under way.
type following struct {
	m         *Monitor
	o         Options
	events    <-chan Event
	continued bool // the disks are being given up: there is no way back from here
	completed int  // how often it was found completed
	report    Report
}

// run looks at the state until it is a last one. Once the disks are being given up it goes on
// without ctx: QEMU does, too.
func (f *following) run(ctx context.Context) error {
	for {
		asking := ctx
		if f.continued {
			asking = context.WithoutCancel(ctx)
		}
		var i info
		if err := f.m.Execute(asking, "query-migrate", nil, &i); err != nil {
			return err
		}
		if over, err := f.look(ctx, &i); over || err != nil {
			return err
		}
		select {
		case <-f.events:
		case <-time.After(pollStep):
		case <-f.m.dead:
			return f.m.err
		case <-asking.Done():
			return ctx.Err()
		}
	}
}

// look does what a state asks for, and tells whether it is a last one.
func (f *following) look(ctx context.Context, i *info) (over bool, err error) {
	if f.o.Progress != nil && i.RAM.Total > 0 {
		f.o.Progress(i.progress())
	}
	ms := func(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
	switch i.Status {
	case "completed":
		if f.completed++; i.TotalTime == 0 && f.completed < maxUntimed {
			return false, nil // QEMU says that it is, and then counts how long it took
		}
		f.report.Downtime, f.report.Total, f.report.Setup, f.report.Bytes = ms(i.Downtime), ms(i.TotalTime), ms(i.SetupTime), i.RAM.Transferred
		return true, nil
	case "failed", "cancelled":
		return true, fmt.Errorf("%w: %s %s", ErrFailed, i.Status, printable(i.Error))
	case "pre-switchover":
		if f.continued { // it has not begun to yet
			return false, nil
		}
		began := time.Now()
		if f.o.Paused != nil {
			if err := f.o.Paused(ctx); err != nil {
				return false, err
			}
		}
		f.report.Paused = time.Since(began)
		f.continued = true
		return false, f.m.Execute(ctx, "migrate-continue", map[string]string{"state": "pre-switchover"}, nil)
	}
	return false, nil
}

// cancel gives a migration up, and waits until the guest is here again.
func (m *Monitor) cancel(ctx context.Context) error {
	ctx, end := context.WithTimeout(ctx, cancelTimeout)
	defer end()
	if err := m.Execute(ctx, "migrate_cancel", nil, nil); err != nil {
		return err
	}
	for {
		var i info
		if err := m.Execute(ctx, "query-migrate", nil, &i); err != nil {
			return err
		}
		if slices.Contains([]string{"", "none", "cancelled", "failed", "completed"}, i.Status) {
			return nil
		}
		select {
		case <-time.After(pollStep):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
