package record

import (
	"errors"
	"fmt"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
)

// Sizes of docs/format.md §1.
const (
	SectorSize        = 4096                       // bytes of a sector
	RegionSectors     = 4096                       // sectors of a region
	RegionSize        = RegionSectors * SectorSize // bytes of a region
	MaxSegmentSectors = 256                        // sectors of data in a segment
	Fanout            = 256                        // children of an inner node
	MaxLevel          = 4                          // of an inner node
	MaxImageSize      = 1 << 52                    // bytes
	MinFrameLog       = 12                         // smallest frame: 4 KiB
	MaxFrameLog       = 17                         // largest frame: 128 KiB
	RawFrameLog       = 13                         // largest frame of what does not compress

	signatureSize = 64
)

// Compression says how the frames of new segments are compressed. The numbers are
// those of a frame's encoding and of a commit's body (docs/format.md §3, §7).
type Compression uint8

// The compressions.
const (
	None Compression = 0
	Zstd Compression = 1
	S2   Compression = 2
)

// ParseCompression reads "none", "zstd" or "s2".
func ParseCompression(s string) (Compression, error) {
	switch s {
	case "none":
		return None, nil
	case "zstd":
		return Zstd, nil
	case "s2":
		return S2, nil
	}
	return None, fmt.Errorf("record: compression %q: want zstd, s2 or none", s)
}

func (c Compression) String() string {
	switch c {
	case None:
		return "none"
	case Zstd:
		return "zstd"
	case S2:
		return "s2"
	}
	return fmt.Sprintf("compression %d", uint8(c))
}

// Seal says how to seal: with which suite, under which epoch, and how segments are
// compressed.
type Seal struct {
	Suite       crypto.Suite
	Epoch       *crypto.Epoch
	Compression Compression
}

// ErrNoEpoch: the keyring does not hold the epoch that a record was sealed with.
var ErrNoEpoch = errors.New("the keyring does not hold the record's epoch")

func corrupt(what, format string, args ...any) error {
	return &blockstore.CorruptError{What: what, Cause: fmt.Errorf(format, args...)}
}

func allZero(b []byte) bool {
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}
