package marks

import (
	"bytes"
	"errors"
	"testing"
)

// written makes a disk on which generations 1 to last were written.
func written(d Disk, last uint64) []byte {
	disk := make([]byte, d.Blocks*BlockSize)
	for gen := uint64(1); gen <= last; gen++ {
		n := d.Block(gen)
		d.Fill(disk[n*BlockSize:(n+1)*BlockSize], n, gen)
	}
	return disk
}

// TestAudit: what was flushed must be there as it was, or newer; anything else is noticed.
func TestAudit(t *testing.T) {
	d, other := Disk{Seed: 7, Blocks: 64}, Disk{Seed: 8, Blocks: 64}
	const last = 300
	n := d.Block(last)
	at := func(disk []byte) []byte { return disk[n*BlockSize : (n+1)*BlockSize] }
	for _, c := range []struct {
		name   string
		flush  uint64
		change func(disk []byte)
		lost   bool
	}{
		{"as written", last, func([]byte) {}, false},
		{"newer than flushed", last - 50, func([]byte) {}, false},
		{"nothing flushed", 0, func(disk []byte) { clear(disk) }, false},
		{"zero", last, func(disk []byte) { clear(at(disk)) }, true},
		{"stale", last, func(disk []byte) { copy(at(disk), at(written(d, last-1))) }, true},
		{"a bit", last, func(disk []byte) { at(disk)[BlockSize-1] ^= 1 }, true},
		{"torn", last, func(disk []byte) { clear(at(disk)[BlockSize/2:]) }, true},
		{"another guest's", last, func(disk []byte) { other.Fill(at(disk), n, last) }, true},
		{"of another block", last, func(disk []byte) { d.Fill(at(disk), n^1, last) }, true},
		{"of the future", last, func(disk []byte) { d.Fill(at(disk), n, last+2*slack) }, true},
	} {
		disk := written(d, last)
		c.change(disk)
		if _, err := d.Audit(bytes.NewReader(disk), c.flush); errors.Is(err, ErrLost) != c.lost || (err != nil) != c.lost {
			t.Errorf("%s: %v, want lost %v", c.name, err, c.lost)
		}
	}
	if blocks, err := d.Audit(bytes.NewReader(written(d, last)), last); err != nil || blocks < 50 {
		t.Errorf("%d of 64 blocks were looked at (%v)", blocks, err)
	}
	if _, err := d.Audit(bytes.NewReader(nil), last); err == nil {
		t.Error("an empty disk passes")
	}
}
