package handover

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/image"
)

var (
	one, two    = blockstore.ImageID{1}, blockstore.ImageID{2}
	here, there = [32]byte{1}, [32]byte{2}
)

// asked tells whether the lease of an image goes to a host.
func asked(t *testing.T, table *Table, id blockstore.ImageID, to [32]byte) bool {
	t.Helper()
	given := false
	err := table.Yield(id, to, isReady, func(blockstore.ImageID) error { given = true; return nil })
	if err != nil && !errors.Is(err, image.ErrInUse) || given != (err == nil) {
		t.Fatalf("given %v, %v", given, err)
	}
	return given
}

// TestUnarmed: without a migration the lease goes while no handle is open, flushed or not.
func TestUnarmed(t *testing.T) {
	var table Table
	if !asked(t, &table, one, there) {
		t.Error("not given though nobody has it open")
	}
	h := table.Open(one, nil)
	if err := h.Closing(t.Context()); err != nil {
		t.Fatal(err)
	}
	if asked(t, &table, one, there) {
		t.Error("given though a handle is open")
	}
	if !asked(t, &table, two, there) {
		t.Error("another image was not given")
	}
	h.Close()
	if !asked(t, &table, one, there) {
		t.Error("not given after the handle was closed")
	}
}

// TestArmed: the lease goes to that host alone, once the last handle was flushed and while none writes again.
func TestArmed(t *testing.T) {
	var table Table
	offers := 0
	h := table.Open(one, nil)
	a, err := table.Arm([]blockstore.ImageID{one}, there, time.Minute, func(context.Context) { offers++ })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := table.Arm([]blockstore.ImageID{two, one}, here, time.Minute, nil); !errors.Is(err, image.ErrInUse) {
		t.Errorf("armed twice: %v, want ErrInUse", err)
	}
	dup := table.Open(one, nil)
	for _, step := range []struct {
		name  string
		do    func()
		given bool
	}{
		{"written", func() {}, false},
		{"one of two flushed", func() { check(t, h.Closing(t.Context())) }, false},
		{"both flushed", func() { check(t, dup.Closing(t.Context())) }, true},
		{"written again", func() { h.writes() }, false},
		{"flushed again", func() { check(t, h.Closing(t.Context())) }, true},
		{"opened again", func() { dup = table.Open(one, nil) }, false},
		{"and closed", func() { dup.Close() }, true},
	} {
		step.do()
		if asked(t, &table, one, here) {
			t.Errorf("%s: given to another host", step.name)
		}
		if given := asked(t, &table, one, there); given != step.given {
			t.Errorf("%s: given %v, want %v", step.name, given, step.given)
		}
	}
	if offers != 2 {
		t.Errorf("offered %d times, want 2", offers)
	}
	if got := <-a.Given(); got != one || a.Count() != 1 {
		t.Errorf("given: %v, %d images", got, a.Count())
	}
	a.Disarm()
	if asked(t, &table, one, there) {
		t.Error("given after it was disarmed, though a handle is open")
	}
}

// TestGroup: the disks of one guest are offered when none of them is written.
func TestGroup(t *testing.T) {
	var table Table
	offers := 0
	h1, h2 := table.Open(one, nil), table.Open(two, nil)
	a, err := table.Arm([]blockstore.ImageID{one, two}, there, time.Minute, func(context.Context) { offers++ })
	if err != nil {
		t.Fatal(err)
	}
	check(t, h1.Closing(t.Context()))
	if asked(t, &table, one, there) || offers != 0 {
		t.Error("given, or offered, though the other disk is written")
	}
	check(t, h2.Closing(t.Context()))
	if got := table.Group(two); !slices.Equal(got, []blockstore.ImageID{one, two}) {
		t.Errorf("together with %v go %v", two, got)
	}
	full := errors.New("full")
	unready := func(id blockstore.ImageID) error {
		if id == two {
			return full
		}
		return nil
	}
	err = table.Yield(one, there, unready, func(id blockstore.ImageID) error {
		t.Errorf("%v is given, and %v is not ready", id, two)
		return nil
	})
	if !errors.Is(err, full) || a.Count() != 0 {
		t.Errorf("%v, %d given, want %v", err, a.Count(), full)
	}
	if err := table.Yield(two, there, isReady, func(blockstore.ImageID) error { return full }); !errors.Is(err, full) || a.Count() != 0 {
		t.Errorf("%v, %d given, want %v", err, a.Count(), full)
	}
	if !asked(t, &table, two, there) || offers != 1 { // the other one goes with it
		t.Errorf("not given, or offered %d times", offers)
	}
	if got := []blockstore.ImageID{<-a.Given(), <-a.Given()}; !slices.Equal(got, []blockstore.ImageID{one, two}) || a.Count() != 2 {
		t.Errorf("given: %v", got)
	}
	if !asked(t, &table, one, there) || len(a.Given()) != 0 {
		t.Error("not answered the same again")
	}
	a.Disarm()
	if got := table.Group(two); !slices.Equal(got, []blockstore.ImageID{two}) {
		t.Errorf("together with %v go %v", two, got)
	}
}

// TestYieldWaits: a handle that is opened while the lease is given away finds it gone.
func TestYieldWaits(t *testing.T) {
	var table Table
	opened := make(chan struct{})
	check(t, table.Yield(one, there, isReady, func(blockstore.ImageID) error {
		go func() {
			table.Open(one, nil)
			close(opened)
		}()
		select {
		case <-opened:
			t.Error("opened meanwhile")
		default:
		}
		return nil
	}))
	<-opened
}

// TestYieldDisarmed: who asks while another's request ends the migration is answered like who asks after it.
func TestYieldDisarmed(t *testing.T) {
	var table Table
	h := table.Open(one, nil)
	a, err := table.Arm([]blockstore.ImageID{one}, there, time.Minute, func(context.Context) {})
	check(t, err)
	check(t, h.Closing(t.Context()))
	h.Close()
	second, inside := make(chan error), make(chan struct{})
	check(t, table.Yield(one, there, isReady, func(blockstore.ImageID) error {
		go func() {
			close(inside)
			second <- table.Yield(one, there, isReady, func(blockstore.ImageID) error { return nil })
		}()
		<-inside
		table.state(one).armed.Store(nil) // as Disarm does, before the second has its turn
		return nil
	}))
	if err := <-second; err != nil {
		t.Errorf("the second is refused: %v", err)
	}
	a.Disarm()
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func isReady(blockstore.ImageID) error { return nil }
