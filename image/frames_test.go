package image

import (
	"testing"

	"github.com/sealdisk/sealdisk/image/record"
)

// TestFrameSizes: frames that are in memory are not those of a map that says that they have another size.
func TestFrameSizes(t *testing.T) {
	cache, err := newFrameCache(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	s := &Shared{frames: cache}
	for _, kept := range []uint8{record.MinFrameLog, record.RawFrameLog, 15, record.MaxFrameLog} {
		cache.InvalidateAll()
		sp := span{object: &record.LeafObject{FrameLog: kept, Sectors: record.MaxSegmentSectors}}
		cache.keep(&sp, 0, [][]byte{make([]byte, 1<<kept)})
		for log := uint8(record.MinFrameLog); log <= record.MaxFrameLog; log++ {
			for offset := range record.MaxSegmentSectors {
				other := span{object: &record.LeafObject{FrameLog: log, Sectors: record.MaxSegmentSectors}, offset: offset, count: 1}
				frame := offset >> (log - sectorLog)
				want := log == kept && frame == 0
				if got := s.keeps(&other); got != want {
					t.Errorf("frames of 2^%d bytes are kept, sector %d of frames of 2^%d: %v", kept, offset, log, got)
				}
				if got := cache.look(&other, frame, make([][]byte, 1)); got != want {
					t.Errorf("frames of 2^%d bytes are kept, frame %d of 2^%d: %v", kept, frame, log, got)
				}
			}
		}
	}
}
