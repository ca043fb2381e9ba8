package dirty

import (
	"sync/atomic"
	"testing"
)

// What came in long pieces is streamed; what came in short ones, or is little, is not.
func TestStreamed(t *testing.T) {
	for _, c := range []struct {
		name          string
		piece, pieces int
		want          bool
	}{
		{"long and much", 1 << 20, 32, true},
		{"long and little", 1 << 20, 4, false},
		{"short and much", 4 << 10, 8192, false},
	} {
		var total atomic.Int64
		s := New(&total)
		data := make([]byte, c.piece)
		sectors := c.piece / SectorSize
		for i := range c.pieces {
			at := i * sectors
			s.Write(uint64(at/RegionSectors), at%RegionSectors, data, false)
		}
		if got := s.Streamed(); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}
