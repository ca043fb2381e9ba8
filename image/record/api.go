package record

import (
	"io"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
)

type Run struct{ First, Count uint16 }

func (s Seal) Segment(dst []byte, region uint64, runs []Run, data []byte, frameLog uint8) (sealed []byte, salt crypto.Salt, err error) {
	panic("soon")
}

type Segment struct{}

func OpenSegment(e *crypto.Epoch, region uint64, salt crypto.Salt, obj []byte) (*Segment, error) {
	panic("soon")
}
func (s *Segment) FrameSize() int { panic("soon") } // bytes of a full frame
func (s *Segment) Frames() int    { panic("soon") } // data frames
func (s *Segment) DataLen() int   { panic("soon") } // upper bound, bytes
// Expect checks that the segment can hold exactly that many data sectors, as the map says, and makes OpenFrame hold the last frame to it. Not concurrent with OpenFrame.
func (s *Segment) Expect(sectors int) error                    { panic("soon") }
func (s *Segment) OpenFrame(dst []byte, i int) ([]byte, error) { panic("soon") }
func (s *Segment) Runs() ([]Run, error)                        { panic("soon") }

const ZeroObject = 0xFFFF

type LeafObject struct {
	Ref     blockstore.Ref
	Epoch   crypto.EpochID
	Sectors uint16
	Salt    crypto.Salt
	Birth   blockstore.Position
}
type Extent struct{ First, Count, Object, Offset uint16 }
type Leaf struct {
	Region  uint64
	Base    int // index in Objects; -1 if the leaf is no patch
	Objects []LeafObject
	Extents []Extent
}

func (s Seal) Leaf(l *Leaf) ([]byte, error)                              { panic("soon") }
func OpenLeaf(k *crypto.Keyring, b []byte, region uint64) (*Leaf, error) { panic("soon") }

// Find returns the index of the first extent that ends after sector: it covers sector if its First <= sector; len(Extents) if none.
func (l *Leaf) Find(sector uint16) int { panic("soon") }

type Child struct {
	Ref     blockstore.Ref
	Slot    uint8
	Birth   blockstore.Position
	Sectors uint64
}
type Inner struct {
	Level    uint8
	Index    uint64
	Children []Child
}

func (s Seal) Inner(n *Inner) ([]byte, error)                                          { panic("soon") }
func OpenInner(k *crypto.Keyring, b []byte, level uint8, index uint64) (*Inner, error) { panic("soon") }
func (n *Inner) Find(slot uint8) (int, bool)                                           { panic("soon") }

type PlanStats struct {
	LinkBits               int64
	RTT                    time.Duration
	Planned, Merged, Count uint64
}
type Body struct {
	Size, BlockSize int64
	Compression     Compression
	Plan            PlanStats
	Time            time.Time
	Labels          map[string]string
	Floor           blockstore.Position
}
type Commit struct {
	blockstore.CommitPublic
	Body
}

// Commit seals c.Body, then calls sign with all of the record and appends the 64 bytes it returns.
func (s Seal) Commit(c *Commit, sign func(b []byte) []byte) ([]byte, error) { panic("soon") }

// OpenCommit checks neither signature nor lease: raw must come with a lease chain that was checked.
func OpenCommit(k *crypto.Keyring, raw []byte) (*Commit, error) { panic("soon") }

type Snapshot struct {
	Commit blockstore.CommitID
	Name   string
	Time   time.Time
}

func (s Seal) Snapshots(list []Snapshot) ([]byte, error)            { panic("soon") }
func OpenSnapshots(k *crypto.Keyring, b []byte) ([]Snapshot, error) { panic("soon") }

// FindSnapshot looks a name up by its tag, without opening the body.
func FindSnapshot(k *crypto.Keyring, b []byte, name string) (blockstore.CommitID, bool, error) {
	panic("soon")
}

type Range struct {
	Offset, Length int64
	Burst, Ms      uint32
}
type Lineage struct {
	Image  blockstore.ImageID
	Commit blockstore.CommitID
}
type DepMap struct {
	Startup []Range
	Lineage *Lineage
}

func (s Seal) DepMap(m *DepMap) ([]byte, error)               { panic("soon") }
func OpenDepMap(k *crypto.Keyring, b []byte) (*DepMap, error) { panic("soon") }

const JournalHeaderSize = 4096
const MaxJournalData = 4 << 20

type JournalHeader struct {
	Suite  crypto.Suite
	Image  blockstore.ImageID
	Host   [32]byte // public host key
	Era    blockstore.Era
	Term   blockstore.Term
	Epoch  crypto.EpochID
	Salt   crypto.Salt
	Number blockstore.JournalNumber
	Base   blockstore.CommitID
}

func ParseJournalHeader(b []byte) (JournalHeader, error) { panic("soon") } // b: 4096 bytes

type OpKind uint8

const (
	OpWrite  OpKind = 1
	OpZero   OpKind = 2
	OpResize OpKind = 3
)

type Op struct {
	Kind OpKind
	A, B uint64
}
type JournalSealer struct{}

// NewJournalSealer fills in Suite, Epoch and a fresh Salt.
func NewJournalSealer(seal Seal, h JournalHeader) (*JournalSealer, error) { panic("soon") }
func (w *JournalSealer) Header() []byte                                   { panic("soon") } // 4096 bytes

// Record appends one sealed record, zero padded to a multiple of 4096 bytes, to dst. durable: offset in the file up to which all is durable.
func (w *JournalSealer) Record(dst []byte, ops []Op, data [][]byte, durable uint64) ([]byte, error) {
	panic("soon")
}

type JournalScanner struct{}

func NewJournalScanner(k *crypto.Keyring, r io.ReaderAt, size int64) (*JournalScanner, error) {
	panic("soon")
}                                                                             // reads and checks the header
func (s *JournalScanner) Header() JournalHeader                               { panic("soon") }
func (s *JournalScanner) Next() (ops []Op, data []byte, off int64, err error) { panic("soon") } // data valid until the next call

type Entry struct {
	Name   string
	Image  blockstore.ImageID
	Labels map[string]string
}
type Catalogue struct {
	Counter uint64
	Entries []Entry // sorted by name
}

// CatalogueKey derives a catalogue's key from the host key.
type CatalogueKey func(salt crypto.Salt, header []byte) crypto.Key

func SealCatalogue(suite crypto.Suite, store blockstore.StoreID, key CatalogueKey, c *Catalogue) ([]byte, error) {
	panic("soon")
}
func OpenCatalogue(store blockstore.StoreID, key CatalogueKey, b []byte) (*Catalogue, error) {
	panic("soon")
}
