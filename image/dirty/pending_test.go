package dirty

import (
	"sync/atomic"
	"testing"
)

// sink takes up to room operations, and plays them.
type sink struct {
	room  int
	taken int
	state map[uint64]byte // first byte of each sector that is not zero
}

func (k *sink) take() bool {
	if k.taken == k.room {
		return false
	}
	k.taken++
	return true
}

func (k *sink) Resize(int64) bool { return k.take() }

func (k *sink) Zero(sector uint64, count int) bool {
	if !k.take() {
		return false
	}
	for i := range uint64(count) {
		delete(k.state, sector+i)
	}
	return true
}

func (k *sink) Write(sector uint64, page *Page) bool {
	if !k.take() {
		return false
	}
	k.state[sector] = page[0]
	return true
}

func page(b byte) []byte {
	p := make([]byte, SectorSize)
	p[0] = b
	return p
}

// Writers that write the same sectors again and again do not keep a pass from ending, and
// what they wrote is in the next one.
func TestPassEnds(t *testing.T) {
	var total atomic.Int64
	s := New(&total)
	write := func(b byte) {
		for _, region := range []uint64{0, 7} {
			for sector := range 100 {
				s.Write(region, sector, page(b), false)
			}
		}
	}
	write(1)
	state := map[uint64]byte{}
	pass, rounds := s.Pass(), 0
	for over := false; !over; {
		over = pass.Drain(&sink{room: 10, state: state})
		if rounds++; rounds > 21 {
			t.Fatalf("the pass goes on after %d sinks of 10 sectors, of 200", rounds)
		}
		write(byte(1 + rounds))
	}
	if len(state) != 200 {
		t.Fatalf("%d sectors, want 200", len(state))
	}
	if !s.Pass().Drain(&sink{room: 1000, state: state}) {
		t.Fatal("a sink with room is full")
	}
	for sector, b := range state {
		if b != byte(1+rounds) {
			t.Fatalf("sector %d holds %d, want %d", sector, b, 1+rounds)
		}
	}
	if s.queue != nil || s.Pass().left != 0 {
		t.Fatal("something is pending after all was taken")
	}
}

// A region that becomes zero while a pass is in the midst of it, and is written again, ends
// in the journal as it is in memory.
func TestPassBlank(t *testing.T) {
	var total atomic.Int64
	s := New(&total)
	for sector := range 20 {
		s.Write(3, sector, page(1), false)
	}
	state := map[uint64]byte{}
	pass := s.Pass()
	if pass.Drain(&sink{room: 10, state: state}) {
		t.Fatal("20 sectors fit in a sink of 10")
	}
	s.Zero(3, 0, RegionSectors, false)
	s.Write(3, 2, page(2), false)
	s.Write(3, 15, page(3), false)
	for !pass.Drain(&sink{room: 1, state: state}) {
	}
	for pass = s.Pass(); !pass.Drain(&sink{room: 1, state: state}); {
	}
	const base = 3 * RegionSectors
	if len(state) != 2 || state[base+2] != 2 || state[base+15] != 3 {
		t.Fatalf("the journal says %v", state)
	}
}
